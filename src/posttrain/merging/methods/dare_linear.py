"""DARE: differences from the base are dropped at random, the others rescaled and added."""

from __future__ import annotations

from typing import Literal

from posttrain.merging.methods._masked import Share, SumConfig, dropped, summed
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["DareLinearConfig", "dare_linear"]


class DareLinearConfig(SumConfig):
    """Drop at random, rescale, add."""

    kind: Literal["dare_linear"] = "dare_linear"
    """Drop at random, rescale, add."""
    density: Share = 0.8
    """The probability with which a difference stays."""
    rescale: bool = True
    """Rescale those that stay to make up for those that are dropped."""
    compat: Literal["paper", "mergekit"] = "paper"
    """What they are rescaled by: 1 / density (paper; PEFT does so, too), or so that the sum of the magnitudes in each
    tensor stays what it was (mergekit)."""


@register("merger", "dare_linear", config=DareLinearConfig, paper="arXiv:2311.03099")
def dare_linear(config: DareLinearConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: base + scale * sum_i w_i mask_i (model_i - base) / density_i."""
    rescale = "none" if not config.rescale else "norm" if config.compat == "mergekit" else "share"
    return summed(config, stack, *dropped(stack, stack.values(config.density), rescale=rescale))
