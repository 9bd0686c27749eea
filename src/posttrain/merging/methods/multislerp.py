"""Any number of models: the mean of their directions, with the mean of their lengths.

Source: mergekit's multislerp, whose text describes a step from the mean of the unit vectors along the tangent there. As
the mean has the same weights, that step is zero; what is left is the direction of the mean.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from posttrain.errors import ConfigError, Problem
from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.methods._sphere import summed
from posttrain.merging.stack import Apply, Stack
from posttrain.merging.values import PerModel
from posttrain.registry import register

__all__ = ["MultislerpConfig", "multislerp"]

SHORT = 1e-8
"""Added to lengths before they divide; a mean of directions that is shorter has no direction."""


class MultislerpConfig(MergerConfig):
    """The mean direction and the mean length of models, or of what they changed of a base."""

    may_have_base: ClassVar[bool] = True
    kind: Literal["multislerp"] = "multislerp"
    """Mean direction, mean length."""
    weight: PerModel = 1.0
    """Of each model."""
    normalize: bool = True
    """Divide the weights by their sum; without it they scale the length, too."""


@register("merger", "multislerp", config=MultislerpConfig)
def multislerp(config: MultislerpConfig, stack: Stack) -> Apply:
    """Return the function that makes a block: (sum_i w_i |m_i|) d / |d|, d = sum_i w_i m_i / |m_i|, over whole tensors.
    Raise ConfigError if directions cancel (for two models it is a straight line then, as in mergekit).
    """
    weights = torch.tensor(stack.values(config.weight), dtype=torch.float64)
    if config.normalize:
        if not weights.sum():
            cause = f"the weights sum to 0 in {stack.place.name}, so there is no mean"
            raise ConfigError(Problem("weight", cause, "give other weights, or normalize: false"))
        weights = weights / weights.sum()
    products = stack.products(less_base=stack.has_base)
    lengths = products.diagonal().sqrt()
    if not lengths.any():
        return summed(weights.tolist())
    directed = torch.where(lengths > 0, weights / (lengths + SHORT), 0.0)
    length = float((directed @ products @ directed).clamp(min=0).sqrt())
    if length < SHORT:
        if len(weights) == 2:
            return summed(weights.tolist())
        cause = f"the directions of the models cancel in {stack.place.name}, so there is no mean"
        raise ConfigError(Problem("weight", cause, "give other weights"))
    return summed((directed * (float(weights @ lengths) / length)).tolist())
