"""RAM, for models that reinforcement learning trained: what one model alone changed is kept, the rest averaged."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.stack import Apply, Block, Stack
from posttrain.merging.values import Graded
from posttrain.registry import register

__all__ = ["ChangesConfig", "RamConfig", "contributions", "ram"]


class ChangesConfig(MergerConfig):
    """Differences from the base that count as changes."""

    needs_base: ClassVar[bool] = True
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5
    """A difference from the base up to this counts as no change."""
    scale: Graded = 1.0
    """What the merged differences are multiplied by."""


class RamConfig(ChangesConfig):
    """Average each weight over those models that changed it."""

    kind: Literal["ram"] = "ram"
    """Average each weight over those models that changed it."""


def contributions(block: Block, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the differences (models, rows, columns) without those up to epsilon, and how many models have one for each
    weight (rows, columns), as float32.
    """
    changes = block.differences()
    torch.ops.aten.hardshrink.out(changes, epsilon, out=changes)
    count = torch.sign(changes[0]).abs_()
    for own in changes[1:]:
        count.add_(torch.sign(own).abs_())
    return changes, count


@register("merger", "ram", config=RamConfig, paper="arXiv:2601.13572")
def ram(config: RamConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: base + scale * the mean of the differences larger than epsilon."""
    scale = stack.value(config.scale)

    def apply(block: Block) -> Tensor:
        assert block.base is not None
        changes, count = contributions(block, config.epsilon)
        total = changes[0]
        for own in changes[1:]:
            total.add_(own)
        return block.base.add_(total.div_(count.clamp_(min=1)), alpha=scale)

    return apply
