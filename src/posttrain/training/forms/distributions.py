"""Forms that learn distributions of tokens: those of a teacher (`distill`), or those of the model before training.

The teacher reads the same tokens, rendered with the student's template, so the two must share a vocabulary.

`replay: {kind: self, loss: kl}` learns the distributions that the model had in replayed rows, not their words. The
model is run once for them, before the first step, and only on rows that the run will read; `retention/remembered.py`
keeps its distributions in little memory. New and old rows go through the model in separate micro batches, and the loss
of a step is still one mean over all of their tokens.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.batching import length_batches
from posttrain.data.chat import IGNORED
from posttrain.errors import ConfigError, Problem
from posttrain.models.head_loss import chunked, plain_head, states_at
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.logits import logits_at
from posttrain.models.meter import Meter
from posttrain.objectives._loss import Loss
from posttrain.objectives.distill import DistillConfig
from posttrain.retention.remembered import Remembered, divergence_from, nats_and_slope, remember
from posttrain.training.forms.base import FormSetup, MicroBatch, Preparation
from posttrain.training.forms.tokens import TokenBatch, TokensForm

__all__ = ["DistillingForm", "RememberingForm", "check_vocabulary"]

NAMED_TOKENS = 5
"""Maximum number of differing tokens that a message names."""
KEPT = 128
"""Number of tokens that are kept of each distribution."""
PADDED_TOKENS = 2048
"""Maximum padded tokens of a forward pass of the model before training."""


def check_vocabulary(teacher: LoadedModel, student: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError, with sizes and tokens, if the two vocabularies do not give each token the same id."""
    theirs, ours = teacher.tokenizer.get_vocab(), student.get_vocab()
    if theirs == ours:
        return
    differing = sorted(token for token in {*theirs, *ours} if theirs.get(token) != ours.get(token))
    shown = ", ".join(
        f"{token!r} ({theirs.get(token, 'none')} and {ours.get(token, 'none')})" for token in differing[:NAMED_TOKENS]
    )
    cause = f"{teacher.name} has {len(theirs)} tokens and the student {len(ours)}; {len(differing)} differ: {shown}"
    mend = "take a teacher of the same family, or let it write answers and train on those with sft"
    raise ConfigError(Problem("objective.teacher", cause, mend))


class DistillingForm(TokensForm):
    """A form with one sequence per row and a second model as teacher. Replayed rows are distilled, too."""

    objective: DistillConfig
    teacher: LoadedModel
    """The teacher model; `prepare` loads it."""

    def prepare(self, preparation: Preparation) -> None:
        """Load the teacher, frozen, on the student's device."""
        self.teacher = teacher = load_model(self.objective.teacher, device=str(self.device), adapter_merged=True)
        check_vocabulary(teacher, self.setup.tokenizer)
        teacher.model.requires_grad_(False)
        preparation.say(f"teacher: {teacher.name}, {sum(p.numel() for p in teacher.model.parameters()):,} parameters")

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        batch: TokenBatch = micro.tensors.asked(self.device)
        with torch.no_grad():
            taught = logits_at(self.teacher.model, batch.read_by(self.teacher.model), batch.columns)
        logits = logits_at(model, batch.read_by(model), batch.columns)
        return self.with_terms(self.setup.function(logits, taught, batch.targets), batch, micro.old, logits)


class RememberingForm(TokensForm):
    """A form for old rows, with the distribution that the model had at each supervised position before training."""

    def __init__(self, setup: FormSetup) -> None:
        super().__init__(setup)
        self.before: dict[int, Remembered] = {}
        """The distributions by `id` of the row. This is safe since rows stay in memory during the whole run."""

    def prepare(self, preparation: Preparation) -> None:
        """Compute the distributions of the model before training for the old rows that will be read."""
        old = [row for i, row in enumerate(preparation.old) if i in preparation.read]
        lengths = [len(row.input_ids) for row in old]
        work = Meter("asking the model before training", len(old), "rows")
        with preparation.reference.model() as reference, work as meter:
            for numbers in length_batches(lengths, tokens=PADDED_TOKENS, seed=0, epoch=0):
                rows = [old[i] for i in numbers]
                logits, owner = self.tensors(rows).logits(reference, self.device)
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

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        """Return the divergence from the kept distributions, summed over the supervised positions of each row."""
        batch: TokenBatch = micro.tensors
        known = [self.before[id(row)] for row in micro.rows]
        before = Remembered(*(torch.cat(parts).to(self.device) for parts in zip(*known, strict=True)))
        head = plain_head(model)
        if head is not None:  # compute the logits of a few positions at a time
            asked = batch.targets.to(self.device) != IGNORED
            hidden = states_at(model, batch.read_by(model).to(self.device), asked)
            nats = chunked(hidden, head, lambda logits, at, wants: nats_and_slope(before.at(at), logits, wants))
            row = asked.nonzero()[:, 0]
        else:
            logits, row = batch.logits(model, self.device)
            nats = divergence_from(before, logits)  # (N,)
        rows = len(micro.rows)
        summed = nats.new_zeros(rows).index_add(0, row, nats)
        return Loss(batch.weighted(summed), torch.bincount(row, minlength=rows))
