"""SCE: weights with the largest variance are selected, models weighted by what they changed, minority signs erased."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.merging.magnitude import ALL, NONE, Cut, Top, cuts
from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.methods._masked import Share, elected
from posttrain.merging.stack import Apply, Block, Stack
from posttrain.merging.values import Graded
from posttrain.registry import register

__all__ = ["SceConfig", "sce", "variance"]

SMALL = 1e-6
"""mergekit weights models alike whose mean squares sum to less, and divides by no less."""


class SceConfig(MergerConfig):
    """Select, calculate, erase."""

    kind: Literal["sce"] = "sce"
    """Select, calculate, erase."""
    needs_base: ClassVar[bool] = True
    select_topk: Share = 1.0
    """The share of those weights of each tensor that the models do not all change alike which is merged: those whose
    differences have the largest variance. The others stay as they are in the base."""
    scale: Graded = 1.0
    """What the merged differences are multiplied by."""
    compat: Literal["paper", "mergekit"] = "paper"
    """mergekit weights all models alike in a tensor where the mean squares of their differences sum to less than 1e-6,
    as those of most fine-tuned models do; the paper weights them by the mean squares however small they are."""


@register("merger", "sce", config=SceConfig, paper="arXiv:2408.07990")
def sce(config: SceConfig, stack: Stack) -> Apply:
    """Return the function that merges a block: base + scale * sum c_i tau_i / sum c_i over the models whose difference
    tau_i has the sign of sum_i tau_i. c_i: the share of model i in the sum of the squares of all differences of the
    tensor.
    """
    share = stack.value(config.select_topk)
    cut = _selected(stack, share) if share < 1 else ALL
    select = Top(cut, exact=True)
    squares = torch.zeros(len(stack.models), dtype=torch.float64)
    for block in stack.blocks():
        flat = _masked(block, select if share < 1 else None).flatten(1)
        squares += flat.square_().sum(1, dtype=torch.float64)
    total = float(squares.sum())
    least = SMALL if config.compat == "mergekit" else 0.0
    alike = not total or total < least * stack.rows * stack.columns
    weights = [1 / len(squares)] * len(squares) if alike else [float(one) / total for one in squares]
    scale = stack.value(config.scale)
    again = Top(cut, exact=True)

    def apply(block: Block) -> Tensor:
        assert block.base is not None
        changes = _masked(block, again if share < 1 else None)
        return block.base.add_(elected(changes, weights, weights=weights, least=least), alpha=scale)

    return apply


def variance(changes: Tensor) -> Tensor:
    """Return the variance over the first dimension, exactly 0 where all are the same."""
    shifted = [own - changes[0] for own in changes[1:]]
    mean = torch.zeros_like(changes[0])
    for own in shifted:
        mean.add_(own)
    mean.div_(len(changes))
    total = mean.square()
    for own in shifted:
        total.add_(own.sub_(mean).square_())
    return total.div_(len(changes))


def _selected(stack: Stack, share: float) -> Cut:
    """Return the cut in the variances that selects a share of those that are not 0."""
    changed = sum(int(torch.count_nonzero(variance(block.differences()))) for block in stack.blocks())
    rank = int(changed * share)
    size = stack.rows * stack.columns
    if not rank:
        return NONE
    return cuts(lambda: (variance(block.differences())[None] for block in stack.blocks()), [[rank]], size)[0][0]


def _masked(block: Block, select: Top | None) -> Tensor:
    """Return the differences of a block, without those that are not selected."""
    changes = block.differences()
    if select is not None:
        changes.mul_(select.keep_(variance(changes)).sign_())
    return changes
