"""What an editing would do, and about how long it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from posttrain.editing.editors._base import EditorConfig
from posttrain.editing.edits import Edit, Form
from posttrain.editing.reading import padded
from posttrain.editing.session import EditSession
from posttrain.inference.attention import forward

__all__ = ["Preview", "preview"]


class Preview(NamedTuple):
    """What an editing would do: edits, batches, rows of each edit, the matrices, the forms, and seconds, about."""

    edits: int
    batches: int
    rows: int
    weights: tuple[str, ...]
    forms: tuple[Form, ...]
    wall_s: float


def preview(session: EditSession, config: EditorConfig, edits: Sequence[Edit], batch: int | None) -> Preview:
    """Return what an editing would do. The time is that of one forward pass over an edit's rows, times the steps and 3
    for the way back.
    """
    if not edits:
        return Preview(0, 0, 0, (), (), 0.0)
    context = session.context(config, edits, lambda site, change, owners: None)
    rows = context.rows(config, edits)
    places = context.places(config)
    sample = rows[len(rows) // 2]
    ids = padded([row.ids for row in sample], session.loaded.model.device)
    began = time.monotonic()
    with torch.no_grad():
        forward(session.loaded.model, ids, torch.zeros(1, dtype=torch.long))
    spent = time.monotonic() - began
    size = batch or len(edits)
    return Preview(
        edits=len(edits),
        batches=(len(edits) + size - 1) // size,
        rows=len(sample),
        weights=tuple(site.weight for site in places),
        forms=context.maker.forms,
        wall_s=spent * 3 * config.most_steps * len(edits),
    )
