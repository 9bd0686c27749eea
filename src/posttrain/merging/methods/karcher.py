"""Any number of models: the point of the sphere that is nearest to all of them (Karcher mean), with their mean length.

The mean is sought step by step as in mergekit, though on the models' inner products: a step costs nothing.
"""

from __future__ import annotations

from math import cos, sin
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.methods._sphere import summed
from posttrain.merging.stack import Apply, Stack
from posttrain.merging.values import PerModel
from posttrain.registry import register

__all__ = ["KarcherConfig", "karcher"]


class KarcherConfig(MergerConfig):
    """The Karcher mean of the directions, and the mean of the lengths."""

    kind: Literal["karcher"] = "karcher"
    """Mean on the sphere."""
    weight: PerModel = 1.0
    """Of each model; 0 or more."""
    max_iter: int = Field(default=10, ge=1)
    """Steps at most."""
    tol: float = Field(default=1e-5, gt=0)
    """It ends when a step is shorter than this angle, in radians. Tensors of at most this length have no direction."""


@register("merger", "karcher", config=KarcherConfig, paper="arXiv:2603.04972")
def karcher(config: KarcherConfig, stack: Stack) -> Apply:
    """Return the function that makes a block: (sum_i w_i |m_i|) u, where u minimises sum_i w_i angle(u, m_i)^2. Raise
    ConfigError for weights below 0, or if all are 0.
    """
    weights = torch.tensor(stack.values(config.weight), dtype=torch.float64)
    if (weights < 0).any() or not weights.any():
        cause = f"the weights in {stack.place.name} are {weights.tolist()}"
        raise ConfigError(Problem("weight", cause, "give weights of 0 or more that are not all 0"))
    weights = weights / weights.sum()
    products = stack.products()[-len(weights) :, -len(weights) :]
    lengths = products.diagonal().sqrt()
    directed = lengths > config.tol
    if not directed.any():
        return summed([0.0] * len(weights))
    mean = torch.zeros_like(weights)
    units = products[directed][:, directed] / torch.outer(lengths[directed], lengths[directed])
    shares = weights[directed]
    mean[directed] = _mean(units, shares / shares.sum(), config) / lengths[directed]
    return summed((mean * float(weights @ lengths)).tolist())


def _mean(units: Tensor, weights: Tensor, config: KarcherConfig) -> Tensor:
    """Return the mean as weights of unit vectors, given their inner products (k, k)."""

    def length(of: Tensor) -> float:
        return float((of @ units @ of).clamp(min=0).sqrt())

    mean = weights.clone()
    if length(mean) < config.tol:
        mean = torch.zeros_like(weights)
        mean[0] = 1
    mean /= length(mean)
    for _ in range(config.max_iter):
        cosines = (units @ mean).clamp(-1, 1)
        angles = torch.acos(cosines)
        sines = torch.sin(angles)
        pulls = torch.where((angles < config.tol) | (sines < config.tol**2), 0.0, weights * angles / sines)
        step = pulls - (pulls @ cosines) * mean
        size = length(step)
        if size < config.tol:
            break
        mean = cos(size) * mean + sin(size) / size * step
        mean /= length(mean)
    return mean
