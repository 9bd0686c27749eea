"""Replayed rows that are learned as the model said them: every token's distribution before training, not its name.

What `replay: {kind: self, loss: kl}` trains on. The model is asked once, before the first step, and only about rows
that the run will read; what it said is kept as `retention/remembered.py` tells. New and old rows go through the model
apart, and a step stays one mean over all of their tokens.
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
PLACES = 2048
"""Padded tokens of a forward pass when the model is asked beforehand."""


class RememberingForm(TokensForm):
    """Old rows, with what the model said in each supervised place before it was changed."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        self.before: dict[int, Remembered] = {}

    def prepare(self, preparation: Preparation) -> None:
        """Ask the model before training about the old rows that will be read."""
        old = [i for i in range(preparation.new_rows, len(preparation.rows)) if i in preparation.read]
        lengths = [len(preparation.rows[i].input_ids) for i in old]
        work = Meter("asking the model before training", len(old), "rows")
        with preparation.reference.model() as reference, work as meter:
            for numbers in length_batches(lengths, tokens=PLACES, seed=0, epoch=0):
                places = [old[i] for i in numbers]
                micro = self.micro_batch([preparation.rows[i] for i in places], places, [True] * len(places))
                logits, row = self._asked(reference, micro)
                found = remember(logits, KEPT)
                for at, place in enumerate(places):
                    mine = row == at
                    self.before[place] = Remembered(*(part[mine].cpu() for part in found))
                meter.more(len(numbers), tokens=sum(lengths[i] for i in numbers))
        kept = sum(t.numel() * t.element_size() for one in self.before.values() for t in one)
        preparation.say(
            f"replay: {len(old)} of {len(preparation.rows) - preparation.new_rows} replayed rows will be read; what "
            f"the model says in them is kept ({KEPT} likeliest tokens of each place and the rest, "
            f"{kept / 2**20:.1f} MiB)"
        )

    def _asked(self, model: nn.Module, micro: TokenBatch) -> tuple[Tensor, Tensor]:
        """Logits (N, V) of the supervised places, row by row, and the row of each, (N,)."""
        columns = micro.columns.to(self.device) if micro.columns is not None else None
        targets = micro.targets.to(self.device)
        asked = (targets if columns is None else targets[:, columns]) != IGNORED
        logits = logits_at(model, micro.input_ids.to(self.device), columns)
        return logits[asked], asked.nonzero()[:, 0]

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        """Divergence from what was said before, summed over the supervised places of each row."""
        assert isinstance(micro, TokenBatch)
        known = [self.before[number] for number in micro.row_numbers]
        before = Remembered(*(torch.cat(parts).to(self.device) for parts in zip(*known, strict=True)))
        head = plain_head(model)
        if head is not None:  # the logits of a few places at a time
            asked = micro.targets.to(self.device) != IGNORED
            hidden = states_at(model, micro.input_ids.to(self.device), asked)
            nats = chunked(hidden, head, lambda logits, at, wants: nats_and_slope(before.at(at), logits, wants))
            row = asked.nonzero()[:, 0]
        else:
            logits, row = self._asked(model, micro)
            nats = divergence_from(before, logits)  # (N,)
        rows = len(micro.row_numbers)
        summed = nats.new_zeros(rows).index_add(0, row, nats)
        summed = summed if micro.weights is None else summed * micro.weights.to(summed)
        return Loss(summed, torch.bincount(row, minlength=rows))
