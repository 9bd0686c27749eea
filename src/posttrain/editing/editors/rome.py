"""ROME: write one fact into one matrix by a rank-one change. Meng et al. 2022, arXiv:2202.05262.

    dW = delta u^T / (u . k),   u = C^-1 k

k is the key at the subject's last token, delta what the output must gain, C the second moment of keys. Among all
changes with (W + dW) k = W k + delta it is the one that changes the outputs for other keys least (eq. 2). The published
code takes u from the mean key over several texts, but k and v from the bare prompt; then u . k can be tiny and the
change huge, and one such edit breaks the model (arXiv:2403.07175). Here keys and values are means throughout;
`legacy_keys` restores the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._located import LocatedConfig, Solved, locate_then_edit
from posttrain.editing.editors._moments import ridge_of
from posttrain.editing.edits import Edit
from posttrain.editing.sites import Site
from posttrain.models.edit_delta import LowRank
from posttrain.registry import register

__all__ = ["RomeConfig", "rank_one", "rome"]


class RomeConfig(LocatedConfig):
    """A rank-one change of one matrix for each fact."""

    kind: Literal["rome"] = "rome"
    """ROME."""
    moments: bool = True
    """Spare the keys of other texts, by their second moment; false: treat all directions alike (u = k)."""
    legacy_keys: bool = False
    """Divide by the bare prompt's key, as the published code does. It can break the model."""

    @property
    def needs_moments(self) -> bool:
        return self.moments


def rank_one(directions: Tensor, keys: Tensor, deltas: Tensor) -> LowRank:
    """Return rank-one changes written one after another, as one change of rank E.

    directions: u (d, E); keys: k (d, E); deltas: (D, E), what the output for each key must gain before anything is
    written. A change also moves the outputs for the keys after it; these then need so much less:

        left_i = delta_i - sum_(j < i) left_j (right_j . k_i),   right_i = u_i / (u_i . k_i)
    """  # fmt: skip
    right = (directions / (directions * keys).sum(0)).T  # (E, d)
    moved = right @ keys  # (E, E), at [j, i]: how much of change j the output for key i gets
    left = deltas.clone()
    for i in range(1, left.shape[1]):
        left[:, i] -= left[:, :i] @ moved[:i, i]
    return LowRank(left, right)


@register("editor", "rome", config=RomeConfig, paper="arXiv:2202.05262")
def rome(config: RomeConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Search the target vectors of all edits together, then write one edit after another."""

    def solve(site: Site, keys: Tensor, wanted: Tensor, bare: Tensor) -> Solved:
        directions = ridge_of(context, site).solve(keys) if config.moments else keys
        return Solved(rank_one(directions, bare if config.legacy_keys else keys, wanted), directions)

    return locate_then_edit(config, context, edits, "value", solve)
