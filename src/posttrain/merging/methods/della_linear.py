"""DELLA without election: differences are dropped at random, small ones more often, the others rescaled and added."""

from __future__ import annotations

from typing import Literal

from posttrain.merging.methods._masked import Share, SumConfig, pruned, summed
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["DellaLinearConfig", "della_linear"]


class DellaLinearConfig(SumConfig):
    """Drop small differences more often, rescale, add."""

    kind: Literal["della_linear"] = "della_linear"
    """Drop small differences more often, rescale, add."""
    density: Share = 0.7
    """The mean probability with which a difference stays."""
    epsilon: Share = 0.07
    """How far from the density it goes: in each row from density - epsilon for the smallest to density + epsilon for
    the largest. The paper calls twice as much epsilon."""
    rescale: bool = True
    """Rescale those that stay to make up for those that are dropped."""
    compat: Literal["paper", "mergekit"] = "paper"
    """What they are rescaled by: each by 1 / its probability (paper), or all so that the sum of the magnitudes in each
    tensor stays what it was (mergekit)."""


@register("merger", "della_linear", config=DellaLinearConfig, paper="arXiv:2406.11617")
def della_linear(config: DellaLinearConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: base + scale * sum_i w_i mask_i (model_i - base) / probability_i."""
    rescale = "none" if not config.rescale else "norm" if config.compat == "mergekit" else "share"
    return summed(config, stack, *pruned(stack, config.density, config.epsilon, rescale=rescale))
