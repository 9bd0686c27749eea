"""MEMIT: write many facts at once, spread over several layers. Meng et al. 2023, arXiv:2210.07229.

    dW = R K^T (lambda C + K_p K_p^T + K K^T)^-1

K are the keys of the edits (d, E), R what their outputs must gain (D, E), C the second moment of keys, K_p the keys of
earlier edits. lambda counts as how many other keys C stands for. With the earlier keys kept, one edit after another
solves the same normal equations as all at once, and long sequences stay whole (arXiv:2605.26670); `past_keys: false` is
the published code. Solved by Woodbury: one E x E system on top of the factored matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._located import LocatedConfig, Solved, locate_then_edit
from posttrain.editing.editors._moments import ridge_of
from posttrain.editing.edits import Edit
from posttrain.editing.sites import Site
from posttrain.editing.solve import Ridge
from posttrain.editing.targets import TargetConfig
from posttrain.models.edit_delta import LowRank
from posttrain.registry import register

__all__ = ["MemitConfig", "auto_band", "memit", "ridge_update"]


def auto_band(count: int) -> tuple[int, ...]:
    """Return the layers between 11 and 25 % of the depth: 4 to 8 of 32, as published for Llama, 3 to 7 of 28."""
    first = math.ceil(0.125 * count - 0.5)  # a half goes down: 3 of 28
    return tuple(range(first, max(round(0.25 * count), first) + 1))


class MemitConfig(LocatedConfig):
    """Many facts at once, over several layers."""

    kind: Literal["memit"] = "memit"
    """MEMIT."""
    weight: float = Field(0.1, gt=0)
    """lambda over the width of the keys: as how many other keys, per number of a key, the second moment counts. Larger
    spares other keys more and writes less. Published: 15,000 of 16,384 (0.92) for GPT-J, of 14,336 for Llama 3."""
    past_keys: bool = True
    """Keep the keys of earlier edits, so that later ones do not undo them."""
    bare: float | None = Field(0.5, gt=0, lt=1)
    """The share of the prompt without a text before it among its rows; all rows alike when null."""
    target: TargetConfig = TargetConfig(clamp=0.75)
    """How the target vectors are searched."""

    def auto_layers(self, count: int) -> tuple[int, ...]:
        return auto_band(count)


def ridge_update(ridge: Ridge, keys: Tensor, wanted: Tensor) -> tuple[LowRank, Tensor, float]:
    """Return R K^T (A + K K^T)^-1 as a change of rank E, the directions A^-1 K (d, E), and the condition of the system.

        R K^T (A + K K^T)^-1 = R (I + K^T A^-1 K)^-1 K^T A^-1

    ridge: A, factored; keys: K (d, E); wanted: R (D, E).
    """
    through = ridge.solve(keys)
    inner = keys.T @ through
    inner.diagonal().add_(1.0)
    right = torch.linalg.solve(inner, through.T)
    return LowRank(wanted, right), through, float(torch.linalg.cond(inner))


@register("editor", "memit", config=MemitConfig, paper="arXiv:2210.07229")
def memit(config: MemitConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Write the edits together, layer by layer."""

    def solve(site: Site, keys: Tensor, wanted: Tensor, bare: Tensor) -> Solved:
        ridge = ridge_of(context, site, scale=config.weight * site.inputs, past=config.past_keys)
        return Solved(*ridge_update(ridge, keys, wanted))

    return locate_then_edit(config, context, edits, "state", solve)
