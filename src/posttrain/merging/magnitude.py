"""The rank of a magnitude in a whole tensor, or in several, exactly and without a sort.

The bits of a float32 without its sign are an integer that grows with the magnitude. One reading counts its upper 16
bits (`coarse`), which tells in which of 65,536 bins the number of a rank lies; a second one counts the lower 15 bits of
the numbers in that bin (`fine`), which tells the number itself. Counts are whole numbers, so they are added up over
blocks, tensors and threads in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["ALL", "BINS", "FINE", "NONE", "Cut", "Top", "coarse", "cut_in", "cuts", "fine", "locate"]

MAGNITUDE = 0x7FFFFFFF
LOW = 15
BINS = 1 << 16
"""Bins of the upper bits."""
FINE = 1 << LOW
"""Numbers in one bin."""


class Cut(NamedTuple):
    """The magnitude that has a rank, counted from the largest. pattern: its bits; rest: as many of those that equal it
    belong to the rank and those before it; equal: as many equal it.
    """

    pattern: int
    rest: int = 0
    equal: int = 0

    @property
    def value(self) -> float:
        """The magnitude."""
        return float(np.int32(self.pattern).view(np.float32))

    @property
    def floor(self) -> float:
        """The largest float32 that is smaller; -1 if there is none."""
        return float(np.int32(self.pattern - 1).view(np.float32)) if self.pattern else -1.0


ALL = Cut(0)
NONE = Cut(0x7F800001)
"""Cuts that all numbers reach, and that none does but nan, which is never to be lost."""


def coarse(values: Tensor, counts: Tensor) -> None:
    """Add the magnitudes of a block (float32, any shape, without gaps) to the counts of bins, int64 (`BINS`,)."""
    bits = torch.bitwise_and(values.view(torch.int32), MAGNITUDE).bitwise_right_shift_(LOW)
    counts.index_add_(0, bits.view(-1), torch.ones(bits.numel(), dtype=torch.int64))


def locate(counts: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin of the number with a rank from 1 (the largest) to the number of all, and how many are in the bins
    above.

    >>> locate(torch.tensor([5, 0, 2, 1]), 3)
    (2, 1)
    """
    down = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(down, rank))
    return len(counts) - 1 - at, int(down[at - 1]) if at else 0


def fine(values: Tensor, bin: int, counts: Tensor) -> None:
    """Add those magnitudes of a block that lie in a bin to the counts of its numbers, int64 (`FINE`,)."""
    bits = torch.bitwise_and(values.view(torch.int32), MAGNITUDE).view(-1)
    chosen: Any = bits.numpy()[np.equal((bits >> LOW).numpy(), bin)]
    counts.index_add_(0, torch.from_numpy(chosen & (FINE - 1)), torch.ones(len(chosen), dtype=torch.int64))


def cut_in(rank: int, bin: int, above: int, counts: Tensor) -> Cut:
    """Return the cut at a rank, given its bin, how many are above the bin and the counts of the bin's numbers."""
    low, higher = locate(counts, rank - above)
    return Cut(bin << LOW | low, rank - above - higher, int(counts[low]))


def cuts(read: Callable[[], Iterable[Tensor]], ranks: Sequence[Sequence[int]], size: int) -> list[list[Cut]]:
    """Return the cuts at ranks of each of several tensors. read: gives their blocks (tensors, ...) from the beginning;
    ranks: of each tensor, from 0 (`NONE`) to size (`ALL`); size: the numbers of one tensor.
    """
    asked = [sorted({rank for rank in own if 0 < rank < size}) for own in ranks]
    found: list[dict[int, Cut]] = [{} for _ in asked]
    if any(asked):
        counts = {number: torch.zeros(BINS, dtype=torch.int64) for number, own in enumerate(asked) if own}
        for block in read():
            for number, bins in counts.items():
                coarse(block[number], bins)
        spots = {(number, rank): locate(counts[number], rank) for number, own in enumerate(asked) for rank in own}
        inner = {(number, bin): torch.zeros(FINE, dtype=torch.int64) for (number, _), (bin, _) in spots.items()}
        for block in read():
            for (number, bin), numbers in inner.items():
                fine(block[number], bin, numbers)
        for (number, rank), (bin, above) in spots.items():
            found[number][rank] = cut_in(rank, bin, above, inner[number, bin])
    ends = {0: NONE, size: ALL}
    return [[own.get(rank) or ends[rank] for rank in wanted] for own, wanted in zip(found, ranks, strict=True)]


class Top:
    """What reaches a cut, of a tensor whose blocks come from the first to the last. exact: of the numbers that equal
    the cut only the first ones that have the rank; otherwise all.
    """

    def __init__(self, cut: Cut, *, exact: bool) -> None:
        self.pattern, self.floor = cut.pattern, cut.floor
        self.left = cut.rest if exact and cut.rest < cut.equal else None

    def keep_(self, values: Tensor) -> Tensor:
        """Set all others to zero, in place (float32, without gaps)."""
        if self.floor >= 0:
            torch.ops.aten.hardshrink.out(values, self.floor, out=values)
        if self.left is not None:
            flat = values.view(-1)
            bits: Any = torch.bitwise_and(flat.view(torch.int32), MAGNITUDE).numpy()
            equal = np.flatnonzero(np.equal(bits, self.pattern))
            numbers: Any = flat.numpy()
            numbers[equal[self.left :]] = 0.0
            self.left = max(self.left - len(equal), 0)
        return values
