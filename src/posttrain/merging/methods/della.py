"""DELLA: differences are dropped at random, small ones more often, and those that agree in sign merged."""

from __future__ import annotations

from typing import Literal

from posttrain.merging.methods._masked import ElectConfig, Share, agreed, pruned
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["DellaConfig", "della"]


class DellaConfig(ElectConfig):
    """Drop small differences more often, rescale, elect signs, merge what agrees."""

    kind: Literal["della"] = "della"
    """Drop small differences more often, rescale, elect signs, merge what agrees."""
    density: Share = 0.7
    """The mean probability with which a difference stays."""
    epsilon: Share = 0.07
    """How far from the density it goes: in each row from density - epsilon for the smallest to density + epsilon for
    the largest. The paper calls twice as much epsilon."""
    rescale: bool = True
    """Rescale those that stay to make up for those that are dropped."""
    compat: Literal["paper", "mergekit"] = "paper"
    """paper: what stays is rescaled by 1 / its probability, and the sum divided by the number of models that agree.
    mergekit: it is rescaled so that the sum of the magnitudes in each tensor stays what it was, and the sum divided by
    the sum of the weights of the models that agree."""


@register("merger", "della", config=DellaConfig, paper="arXiv:2406.11617")
def della(config: DellaConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: as `ties`, but with masks that are drawn by rank."""
    rescale = "none" if not config.rescale else "norm" if config.compat == "mergekit" else "share"
    thin, factors = pruned(stack, config.density, config.epsilon, rescale=rescale)
    return agreed(config, stack, thin, factors, compat=config.compat)
