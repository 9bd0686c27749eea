"""The factored systems of an editor, kept between its calls: second moments of keys, and the keys of earlier edits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.editing.editors._base import EditContext
from posttrain.editing.sites import Site
from posttrain.editing.solve import Ridge, shrunk

__all__ = ["Kept", "past_keys", "ridge_of"]


class Kept:
    """A system with the number of earlier batches of edits whose keys it holds."""

    def __init__(self, ridge: Ridge) -> None:
        self.ridge, self.taken = ridge, 0

    def caught_up(self, past: list[Tensor]) -> Ridge:
        """Return the system with the keys of all earlier edits."""
        for keys in past[self.taken :]:
            self.ridge.add(keys)
        self.taken = len(past)
        return self.ridge


class _Scaled(NamedTuple):
    """The key of a system in the editor's memory."""

    layer: int
    scale: float
    past: bool


def ridge_of(context: EditContext, site: Site, *, scale: float = 1.0, past: bool = False) -> Ridge:
    """Return scale C, shrunk and factored; with `past`, plus the sum of k k^T over the keys of earlier edits."""
    key = _Scaled(site.layer, scale, past)
    if key not in context.memory:
        moment = context.moments([site])[site.layer]
        matrix, share = shrunk(moment.matrix, moment.tokens)
        if share > 0.5:
            context.say(
                f"layer {site.layer}: {moment.tokens} keys say little of {len(matrix)} directions; their second moment "
                f"is drawn to the identity by {share:.0%}. More texts make edits more precise"
            )
        context.memory[key] = Kept(Ridge(scale * matrix))
    kept: Kept = context.memory[key]
    return kept.caught_up(context.past.get(site.layer, [])) if past else kept.ridge


def past_keys(context: EditContext, site: Site, like: Tensor) -> Tensor:
    """Return the keys of all earlier edits in a layer, (d, n)."""
    found = context.past.get(site.layer, [])
    return torch.cat(found, dim=1).to(like) if found else like.new_zeros(site.inputs, 0)
