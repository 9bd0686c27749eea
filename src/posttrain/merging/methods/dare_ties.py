"""DARE with TIES: differences from the base are dropped at random, and those that agree in sign merged."""

from __future__ import annotations

from typing import ClassVar, Literal

from posttrain.merging.methods._masked import ElectConfig, Share, agreed, dropped
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["DareTiesConfig", "dare_ties"]


class DareTiesConfig(ElectConfig):
    """Drop at random, rescale, elect signs, merge what agrees."""

    usual: ClassVar[bool] = False
    kind: Literal["dare_ties"] = "dare_ties"
    """Drop at random, rescale, elect signs, merge what agrees."""
    density: Share = 0.8
    """The probability with which a difference stays."""
    rescale: bool = True
    """Rescale those that stay to make up for those that are dropped."""
    compat: Literal["paper", "mergekit", "peft"] = "paper"
    """paper: what stays is rescaled by 1 / density, and the sum is divided by the number of models that agree.
    mergekit: it is rescaled so that the sum of the magnitudes in each tensor stays what it was, and the sum is not
    divided; with normalize by the sum of the weights of the models that agree. peft: as paper, but signs are elected
    by the differences without their weights."""


@register("merger", "dare_ties", config=DareTiesConfig, paper="arXiv:2311.03099")
def dare_ties(config: DareTiesConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: as `ties`, but with random masks."""
    rescale = "none" if not config.rescale else "norm" if config.compat == "mergekit" else "share"
    thin, factors = dropped(stack, stack.values(config.density), rescale=rescale)
    return agreed(config, stack, thin, factors, compat=config.compat)
