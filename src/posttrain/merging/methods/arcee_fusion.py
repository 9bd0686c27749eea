"""The base with those changes of one model that stand out (Arcee Fusion).

A number's importance is its change times how far its row, as probabilities, is from the base's (KL divergence of their
softmaxes). Changes with an importance of at least the median plus 1.5 times the distance of the quartiles, over the
whole tensor, are kept. Source: mergekit's arcee_fusion; it estimates quartiles from a random sample of large tensors,
here they are exact.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.stack import Apply, Block, Stack
from posttrain.registry import register

__all__ = ["ArceeFusionConfig", "arcee_fusion"]

HALF = 1 << 16
"""Values of one half of a number's 32 bits."""
SMALL = 1e-8
"""Added to probabilities, so that they have logarithms."""


class ArceeFusionConfig(MergerConfig):
    """The base with the changes of one model that stand out."""

    needs_base: ClassVar[bool] = True
    models_at_most: ClassVar[int | None] = 1
    kind: Literal["arcee_fusion"] = "arcee_fusion"
    """Changes that stand out."""


@register("merger", "arcee_fusion", config=ArceeFusionConfig)
def arcee_fusion(config: ArceeFusionConfig, stack: Stack) -> Apply:
    """Return the function that adds the changes of a block that reach the threshold. Reads the tensor twice before."""
    columns = stack.shape[-1] if stack.shape else 1
    apart: dict[int, Tensor] = {}
    counts = torch.zeros(HALF, dtype=torch.int64)
    for block in stack.blocks():
        apart[block.first] = _divergence(block, columns)
        counts += torch.bincount(_key(_importance(block, apart))[0], minlength=HALF)
    last = stack.rows * stack.columns - 1
    wanted = [_bin(counts, last * part // 4) for part in (1, 2, 3)]
    within = {upper: torch.zeros(HALF, dtype=torch.int64) for upper, _ in wanted}
    for block in stack.blocks():
        uppers, lowers = _key(_importance(block, apart))
        for upper, own in within.items():
            own += torch.bincount(lowers[uppers == upper], minlength=HALF)
    first, median, third = (_number(upper, _bin(within[upper], rank)[0]) for upper, rank in wanted)
    threshold = median + 1.5 * (third - first)

    def apply(block: Block) -> Tensor:
        assert block.base is not None
        kept = _importance(block, apart) >= threshold
        return block.base.add_(block.models[0].mul_(kept.view(block.base.shape)))

    return apply


def _divergence(block: Block, columns: int) -> Tensor:
    """Return the KL divergence of each row of so many numbers from the base's, (rows, 1)."""
    assert block.base is not None
    own, base = (torch.softmax(one.view(-1, columns), dim=-1).add_(SMALL) for one in (block.models[0], block.base))
    return torch.sum(own * torch.log(own / base), dim=-1, keepdim=True)


def _importance(block: Block, apart: dict[int, Tensor]) -> Tensor:
    """Return the importance of each number, (rows, columns); the model's block becomes its changes."""
    rows = apart[block.first]
    return block.differences()[0].view(len(rows), -1).abs() * rows


def _key(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return both halves (0 to 65,535) of integers that have the order of the numbers, flat."""
    bits = numbers.view(-1).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits >> 16) + HALF // 2, bits & (HALF - 1)


def _number(upper: int, lower: int) -> Tensor:
    """Return the number with these halves."""
    bits = torch.tensor((upper - HALF // 2) * HALF + lower, dtype=torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _bin(counts: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that has the number of a rank (from 0), and its rank within it."""
    below = counts.cumsum(0)
    where = int(torch.searchsorted(below, rank, right=True))
    return where, rank - (int(below[where - 1]) if where else 0)
