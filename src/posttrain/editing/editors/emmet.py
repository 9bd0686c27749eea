"""EMMET: write many facts at once and exactly, as ROME does with one. Gupta et al. 2024, arXiv:2403.14236.

    dW = R (K^T C^-1 K + eps I)^-1 K^T C^-1

Among all changes with dW K = R it is the one that changes the outputs for other keys least; eps keeps the E x E system
solvable where keys are alike. With one edit and eps = 0 it is ROME.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._located import LocatedConfig, Solved, locate_then_edit
from posttrain.editing.editors._moments import ridge_of
from posttrain.editing.editors.memit import auto_band
from posttrain.editing.edits import Edit
from posttrain.editing.sites import Site
from posttrain.models.edit_delta import LowRank
from posttrain.registry import register

__all__ = ["EmmetConfig", "emmet", "equality_update"]


class EmmetConfig(LocatedConfig):
    """Many facts at once, each written exactly."""

    kind: Literal["emmet"] = "emmet"
    """EMMET."""
    epsilon: float = Field(0.1, ge=0)
    """eps of a batch of several edits; a single one takes 0."""

    def auto_layers(self, count: int) -> tuple[int, ...]:
        return auto_band(count)


def equality_update(through: Tensor, keys: Tensor, wanted: Tensor, epsilon: float) -> tuple[LowRank, float]:
    """Return R (K^T C^-1 K + eps I)^-1 K^T C^-1 as a change of rank E, and the condition of the system.

    through: C^-1 K (d, E); keys: K (d, E); wanted: R (D, E).
    """
    inner = keys.T @ through
    inner.diagonal().add_(epsilon)
    return LowRank(wanted, torch.linalg.solve(inner, through.T)), float(torch.linalg.cond(inner))


@register("editor", "emmet", config=EmmetConfig, paper="arXiv:2403.14236")
def emmet(config: EmmetConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Write the edits together, layer by layer."""

    def solve(site: Site, keys: Tensor, wanted: Tensor, bare: Tensor) -> Solved:
        through = ridge_of(context, site).solve(keys)
        change, condition = equality_update(through, keys, wanted, config.epsilon if keys.shape[1] > 1 else 0.0)
        return Solved(change, through, condition)

    return locate_then_edit(config, context, edits, "state", solve)
