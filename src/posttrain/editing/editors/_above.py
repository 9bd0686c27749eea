"""Losses of answers while one matrix moves: what enters its layer is read once for each row.

Nothing below the edited layer depends on the matrix. So the states that enter the layer are kept, and a step computes
this layer and those above it. A trial compares the first losses with reading whole rows; where they differ (layers
that read something else than the states of the layer before), or where the states would fill the memory, rows are
read as a whole in every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from posttrain.editing.editors._answers import Asked, nats_of
from posttrain.editing.editors._base import EditContext
from posttrain.editing.reading import padded, replaced_forwards, stopping_after
from posttrain.editing.sites import Site, first_of
from posttrain.models.logits import UNFIT

__all__ = ["Above"]

MOST_BYTES = 2**30
"""Most bytes of states that are kept."""
TOLERANCE = 1e-3
"""Largest difference of losses in the trial in float32, as a share of the loss or in nats."""
COARSE = 0.05
"""The same limit in half precision."""


class Above:
    """Reads rows from the layer of an edited matrix on. context: has the model; site: the matrix that moves."""

    def __init__(self, context: EditContext, site: Site):
        sites = context.sites
        self.model: Any = sites.model
        blocks = [sites.model.get_submodule(name) for name in sites.layers]
        self.lower, self.block = blocks[: site.layer], blocks[site.layer]
        self.kept: dict[tuple[int, ...], Tensor] = {}
        self.bytes = 0
        self.memory, self.key = context.memory, ("above", site.layer)  # the trial's result, for later edits, too
        self.useful: bool | None = context.memory.get(self.key) if self.lower else False
        self.tuples = False

    def nats(self, asked: Asked) -> Tensor:
        """Return each row's mean loss per token of its answer, (B,), in nats."""
        if self.useful is None and self._keeps(asked):
            self.useful = self.memory[self.key] = self._right(asked)
        if not self.useful or not self._keeps(asked):
            return nats_of(self.model, asked)
        return self._nats(asked)

    def _right(self, asked: Asked) -> bool:
        """Return whether the losses of rows that are kept are those of whole rows."""
        with torch.no_grad():
            whole = nats_of(self.model, asked)
            try:
                found = self._nats(asked)
            except torch.OutOfMemoryError:
                raise
            except UNFIT:
                return False
        limit = TOLERANCE if self.model.dtype in (torch.float32, torch.float64) else COARSE
        return bool(((found - whole).abs() <= limit * whole.abs().clamp_min(1)).all())

    def _keeps(self, asked: Asked) -> bool:
        """Read rows that are new up to the edited layer; return False if they are too many to be kept."""
        new = [row for row in dict.fromkeys(asked.rows) if row not in self.kept]
        if not new:
            return True
        width = self.model.get_input_embeddings().weight.shape[1]
        self.bytes += sum(map(len, new)) * width * self.model.dtype.itemsize
        if self.bytes > MOST_BYTES:
            self.kept.clear()
            self.useful = False
            return False
        entered: list[Tensor] = []

        def see(_: nn.Module, args: Any, output: Any) -> None:
            self.tuples = isinstance(output, tuple | list)
            entered.append(first_of(output))

        handle = self.lower[-1].register_forward_hook(see)
        try:
            with torch.no_grad(), stopping_after(self.lower[-1]):
                self.model(input_ids=padded(new, self.model.device), use_cache=False)
        finally:
            handle.remove()
        self.kept |= {row: entered[0][i, : len(row)].clone() for i, row in enumerate(new)}
        return True

    def _nats(self, asked: Asked) -> Tensor:
        entering = pad_sequence([self.kept[row] for row in asked.rows], batch_first=True)
        own = self.block.forward

        def nothing(hidden_states: Tensor, *args: Any, **keywords: Any) -> Any:
            return (hidden_states,) if self.tuples else hidden_states

        def begin(hidden_states: Tensor, *args: Any, **keywords: Any) -> Any:
            return own(entering, *args, **keywords)

        with replaced_forwards({**dict.fromkeys(self.lower, nothing), self.block: begin}):
            return nats_of(self.model, asked)
