"""The first model, moved to the second one by a small distance at most: numbers that are already near are swapped.

Source: alchemonaut's QuartetAnemoi-70B, and mergekit's nearswap. A number moves by t * d / |d|, and not beyond the
other model's, where d is their distance; so numbers that are nearer than t take the other model's value.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.stack import Apply, Block, Stack
from posttrain.merging.values import Graded
from posttrain.registry import register

__all__ = ["NearswapConfig", "nearswap"]


class NearswapConfig(MergerConfig):
    """The first model with a step of at most t to the second one."""

    models_at_least: ClassVar[int] = 2
    models_at_most: ClassVar[int | None] = 2
    kind: Literal["nearswap"] = "nearswap"
    """Small steps to a second model."""
    t: Graded = 1e-4
    """The longest way that a number moves, 0 or more. (Below 1e-6 mergekit moves numbers that are nearer than 1e-6 less
    far.)"""


@register("merger", "nearswap", config=NearswapConfig)
def nearswap(config: NearswapConfig, stack: Stack) -> Apply:
    """Return the function that makes a block: a + clamp(b - a, -t, t). Raise ConfigError for t below 0."""
    t = stack.value(config.t, 1e-4)
    if t < 0:
        raise ConfigError(Problem("t", f"it is {t} in {stack.place.name}", "give 0 or more"))

    def apply(block: Block) -> Tensor:
        first, second = block.models
        step = second.sub_(first)
        return first.add_(step.clamp_(-t, t))

    return apply
