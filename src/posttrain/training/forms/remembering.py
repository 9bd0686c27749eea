"""Replayed rows whose distributions before training are learned, not their words: `replay: {kind: self, loss: kl}`.

The model is asked once, before the first step, and only about rows that the run will read; `retention/remembered.py`
keeps its distributions in little memory. New and old rows go through the model apart from each other, and the loss of a
step stays one mean over all of their tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.data.batching import length_batches
from posttrain.data.chat import IGNORED
from posttrain.models.head_loss import chunked, plain_head, states_at
from posttrain.models.logits import logits_at
from posttrain.models.meter import Meter
from posttrain.objectives._loss import Loss
from posttrain.retention.remembered import Remembered, divergence_from, nats_and_slope, remember
from posttrain.training.forms.base import MicroBatch, Preparation
from posttrain.training.forms.tokens import TokenBatch, TokensForm

__all__ = ["RememberingForm"]

KEPT = 128
"""Tokens kept of each distribution."""
PADDED_TOKENS = 2048
"""Of a forward pass when the model is asked beforehand."""


class RememberingForm(TokensForm):
    """Old rows, with the model's distribution at each supervised position before it was changed."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        self.before: dict[int, Remembered] = {}
        """By the `id` of a row: rows stay in memory for as long as a run."""

    def prepare(self, preparation: Preparation) -> None:
        """Ask the model before training about the old rows that will be read."""
        old = [row for i, row in enumerate(preparation.old) if i in preparation.read]
        lengths = [len(row.input_ids) for row in old]
        work = Meter("asking the model before training", len(old), "rows")
        with preparation.reference.model() as reference, work as meter:
            for numbers in length_batches(lengths, tokens=PADDED_TOKENS, seed=0, epoch=0):
                rows = [old[i] for i in numbers]
                logits, owner = self._asked(reference, self.micro_batch(rows, [True] * len(rows)))
                found = remember(logits, KEPT)
                for at, row in enumerate(rows):
                    mine = owner == at
                    self.before[id(row)] = Remembered(*(part[mine].cpu() for part in found))
                meter.more(len(numbers), tokens=sum(lengths[i] for i in numbers))
        kept = sum(t.numel() * t.element_size() for one in self.before.values() for t in one)
        preparation.say(
            f"replay: {len(old)} of {len(preparation.old)} replayed rows will be read; what "
            f"the model says in them is kept ({KEPT} likeliest tokens of each place and the rest, "
            f"{kept / 2**20:.1f} MiB)"
        )

    def _asked(self, model: nn.Module, micro: TokenBatch) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of the supervised positions, row by row, and the index of the row of each, (N,)."""
        input_ids, columns, targets = micro.asked(self.device)
        asked = targets != IGNORED
        logits = logits_at(model, input_ids, columns)
        return logits[asked], asked.nonzero()[:, 0]

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        """Divergence from the distributions before, summed over the supervised positions of each row."""
        assert isinstance(micro, TokenBatch)
        known = [self.before[id(row)] for row in micro.rows]
        before = Remembered(*(torch.cat(parts).to(self.device) for parts in zip(*known, strict=True)))
        head = plain_head(model)
        if head is not None:  # the logits of a few positions at a time
            asked = micro.targets.to(self.device) != IGNORED
            hidden = states_at(model, micro.input_ids.to(self.device), asked)
            nats = chunked(hidden, head, lambda logits, at, wants: nats_and_slope(before.at(at), logits, wants))
            row = asked.nonzero()[:, 0]
        else:
            logits, row = self._asked(model, micro)
            nats = divergence_from(before, logits)  # (N,)
        rows = len(micro.rows)
        summed = nats.new_zeros(rows).index_add(0, row, nats)
        return Loss(micro.weighted(summed), torch.bincount(row, minlength=rows))
