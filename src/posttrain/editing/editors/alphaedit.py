"""AlphaEdit: write only in directions that other keys hardly use. Fang et al. 2025, arXiv:2410.02355.

    dW = R K^T P (K_p K_p^T P + K K^T P + l2 I)^-1,   P = N N^T

N spans the directions that hold the least of the second moment C = E[k k^T]: all but the first ones that together hold
`energy` of its trace. In the coordinates of N this is a ridge regression, symmetric and smaller:

    K' = N^T K;   dW = R K'^T (K_p' K_p'^T + K' K'^T + l2 I)^-1 N^T

The published code takes eigenvalues below an absolute threshold instead, which depends on the scale of the keys:
`threshold: 0.02, l2: 10`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._located import LocatedConfig, Solved, locate_then_edit
from posttrain.editing.editors._moments import Kept
from posttrain.editing.editors.memit import auto_band, ridge_update
from posttrain.editing.edits import Edit
from posttrain.editing.sites import Site
from posttrain.editing.solve import Ridge
from posttrain.editing.targets import TargetConfig
from posttrain.errors import PosttrainError, Problem
from posttrain.models.edit_delta import LowRank
from posttrain.registry import register

__all__ = ["AlphaEditConfig", "alphaedit", "null_space", "null_update"]


class AlphaEditConfig(LocatedConfig):
    """Changes in the null space of other keys."""

    kind: Literal["alphaedit"] = "alphaedit"
    """AlphaEdit."""
    energy: float = Field(0.95, gt=0, lt=1)
    """Share of the trace of the second moment that is left alone."""
    l2: float = Field(0.1, gt=0)
    """Weight of the length of the change, as a share of what other keys have in the free directions (the mean of
    |N^T k|^2). It is an absolute number with `threshold`: 10 in the published code, 1 in EasyEdit for Qwen."""
    threshold: float | None = Field(None, gt=0)
    """Leave directions alone whose eigenvalue is above this, as the published code does (0.02), in place of `energy`;
    both numbers then depend on the scale of the keys."""
    past_keys: bool = True
    """Keep the keys of earlier edits."""
    bare: float | None = Field(0.5, gt=0, lt=1)
    """The share of the prompt without a text before it among its rows; all rows alike when null."""
    target: TargetConfig = TargetConfig(clamp=0.75)
    """How the target vectors are searched."""

    def auto_layers(self, count: int) -> tuple[int, ...]:
        return auto_band(count)


def null_space(moment: Tensor, *, energy: float = 0.95, threshold: float | None = None) -> Tensor:
    """Return N, (d, r), an orthonormal basis of the directions that a second moment (d, d) uses least.

    They are those beyond the fewest eigenvectors that hold `energy` of the trace; or, with `threshold`, those with
    smaller eigenvalues. r may be 0.
    """
    values, vectors = torch.linalg.eigh(moment.double())  # ascending
    if threshold is not None:
        return vectors[:, values < threshold]
    rest = values.clamp_min(0).cumsum(0)  # the trace that the first i + 1 directions hold
    return vectors[:, rest <= (1 - energy) * rest[-1]]


def null_update(basis: Tensor, ridge: Ridge, keys: Tensor, wanted: Tensor) -> tuple[LowRank, Tensor, float]:
    """Return R K'^T (A + K' K'^T)^-1 N^T as a change of rank E, its directions (d, E), and the condition of the system.

    basis: N (d, r); ridge: A (r, r), l2 I with the earlier keys in the coordinates of N; keys: K (d, E); wanted: R
    (D, E).
    """
    change, through, condition = ridge_update(ridge, basis.T @ keys, wanted)
    return LowRank(change.left, change.right @ basis.T), basis @ through, condition


@register("editor", "alphaedit", config=AlphaEditConfig, paper="arXiv:2410.02355")
def alphaedit(config: AlphaEditConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Write the edits together, layer by layer, in the null space of each layer's keys."""

    def solve(site: Site, keys: Tensor, wanted: Tensor, bare: Tensor) -> Solved:
        basis, kept = _kept(config, context, site)
        inside = [basis.T @ past for past in context.past.get(site.layer, [])] if config.past_keys else []
        return Solved(*null_update(basis, kept.caught_up(inside), keys, wanted))

    return locate_then_edit(config, context, edits, "state", solve)


def _kept(config: AlphaEditConfig, context: EditContext, site: Site) -> tuple[Tensor, Kept]:
    """Return the basis of a layer's null space and the ridge system in its coordinates, made once."""
    key = ("null space", site.layer, config.energy, config.threshold, config.l2)
    if key not in context.memory:
        moment = context.moments([site])[site.layer]
        basis = null_space(moment.matrix, energy=config.energy, threshold=config.threshold)
        if not basis.shape[1]:
            cause = f"layer {site.layer}: no direction is free: all eigenvalues are above {config.threshold}"
            raise PosttrainError(Problem("editor alphaedit", cause, "leave threshold out, or raise it"))
        if basis.shape[1] == len(basis):
            cause = f"layer {site.layer}: no direction is left alone: all eigenvalues are below {config.threshold}"
            raise PosttrainError(Problem("editor alphaedit", cause, "leave threshold out, or lower it"))
        context.say(f"layer {site.layer}: {basis.shape[1]} of {len(basis)} directions are free to edit")
        eye = torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)
        usual = 1.0 if config.threshold is not None else float((basis.T @ moment.matrix.double() @ basis).trace())
        context.memory[key] = basis, Kept(Ridge(config.l2 * usual * eye))
    found: tuple[Tensor, Kept] = context.memory[key]
    return found
