"""What edits have added to weights, in the order in which it was added; kept small, so that it can be taken back.

A delta belongs to one matrix: two thin matrices for an editor that solves, or a whole one for an editor that trains. A
weight is always computed in the same way, from the untouched weight and the deltas in order, so that undoing, loading
and editing again give the same bits:

    W <- round(float64(W) + float64(left) float64(right))

The factors are float32, in memory as on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.editing.sites import Site
from posttrain.editing.solve import LowRank

__all__ = ["Delta", "added"]


@dataclass(frozen=True, eq=False)
class Delta:
    """A change of one matrix W (D, d).

    weight: the parameter's name; transposed: it is stored as (d, D); change: low rank, or a whole matrix (D, d);
    owners: for each column of a low-rank change, the number of the edit that it belongs to.
    """

    weight: str
    transposed: bool
    change: LowRank | Tensor
    owners: tuple[int, ...] = ()

    @staticmethod
    def of(site: Site, change: LowRank | Tensor, owners: Sequence[int]) -> Delta:
        """Return a change of a site as a delta, in float32 on the CPU."""
        if isinstance(change, Tensor):
            return Delta(site.weight, site.transposed, _kept(change))
        return Delta(site.weight, site.transposed, LowRank(*map(_kept, change)), tuple(owners))

    @property
    def rank(self) -> int | None:
        """The number of columns, None for a whole matrix."""
        return None if isinstance(self.change, Tensor) else self.change.left.shape[1]

    def without(self, edits: frozenset[int]) -> Delta | None:
        """Return the delta without the columns of some edits; None if nothing is left. A whole matrix stays."""
        if isinstance(self.change, Tensor):
            return self
        keep = [i for i, owner in enumerate(self.owners) if owner not in edits]
        if not keep:
            return None
        change = LowRank(self.change.left[:, keep], self.change.right[keep])
        return Delta(self.weight, self.transposed, change, tuple(self.owners[i] for i in keep))


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()


@torch.no_grad()
def added(weight: Tensor, delta: Delta) -> Tensor:
    """Return a stored weight with a delta added, in the weight's shape, dtype and on its device."""
    change = delta.change
    if isinstance(change, Tensor):
        whole = change.to(weight.device).double()
    else:
        whole = change.left.to(weight.device).double() @ change.right.to(weight.device).double()
    return (weight.double() + (whole.T if delta.transposed else whole)).to(weight.dtype)
