"""Weighted mean of the weights of models (model soups)."""

from __future__ import annotations

from typing import Literal

from posttrain.errors import ConfigError, Problem
from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.stack import Apply, Stack, moved
from posttrain.merging.values import PerModel
from posttrain.registry import register

__all__ = ["LinearConfig", "linear"]


class LinearConfig(MergerConfig):
    """A weighted mean."""

    kind: Literal["linear"] = "linear"
    """Weighted mean."""
    weight: PerModel = 1.0
    """Of each model."""
    normalize: bool = True
    """Divide by the sum of the weights; without it, weights that do not sum to 1 scale the whole model."""


@register("merger", "linear", config=LinearConfig, paper="arXiv:2203.05482")
def linear(config: LinearConfig, stack: Stack) -> Apply:
    """Return the function that averages a block. Raise ConfigError if weights sum to 0 and are to be normalised."""
    weights = stack.values(config.weight)
    total = sum(weights)
    if config.normalize:
        if not total:
            cause = f"the weights sum to 0 in {stack.place.name}, so there is no mean"
            raise ConfigError(Problem("weight", cause, "give other weights, or normalize: false"))
        weights, total = [weight / total for weight in weights], 1.0
    return lambda block: moved(block.models[0], block.models[1:], weights[1:], total)
