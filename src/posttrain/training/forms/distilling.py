"""Rows of tokens whose distribution a teacher gives: the form of `distill`.

The teacher reads the same tokens, rendered with the student's template, so the two must share a vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.errors import ConfigError, Problem
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.logits import logits_at
from posttrain.objectives._loss import Loss
from posttrain.objectives.distill import DistillConfig
from posttrain.training.forms.base import MicroBatch, Preparation
from posttrain.training.forms.tokens import TokenBatch, TokensForm

__all__ = ["DistillingForm", "check_vocabulary"]

NAMED_TOKENS = 5
"""Differing tokens that a message names."""


def check_vocabulary(teacher: LoadedModel, student: PreTrainedTokenizerBase) -> None:
    """ConfigError naming sizes and tokens when an id does not mean the same to both."""
    theirs, ours = teacher.tokenizer.get_vocab(), student.get_vocab()
    if theirs == ours:
        return
    differing = sorted(token for token in {*theirs, *ours} if theirs.get(token) != ours.get(token))
    shown = ", ".join(
        f"{token!r} ({theirs.get(token, 'none')} and {ours.get(token, 'none')})" for token in differing[:NAMED_TOKENS]
    )
    raise ConfigError(
        Problem(
            "objective.teacher",
            f"{teacher.name} has {len(theirs)} tokens and the student {len(ours)}; {len(differing)} differ: {shown}",
            "take a teacher of the same family, or let it write answers and train on those with sft",
        )
    )


class DistillingForm(TokensForm):
    """One sequence per row, with a teacher beside the model. Replayed rows are distilled, too."""

    objective: DistillConfig

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        self.teacher: LoadedModel | None = None

    def prepare(self, preparation: Preparation) -> None:
        """Load the teacher, frozen, on the student's device."""
        teacher = load_model(self.objective.teacher, device=str(self.device), adapter_merged=True)
        check_vocabulary(teacher, self.setup.tokenizer)
        teacher.model.requires_grad_(False)
        self.teacher = teacher
        preparation.say(f"teacher: {teacher.name}, {sum(p.numel() for p in teacher.model.parameters()):,} parameters")

    def loss(self, model: Any, micro: MicroBatch) -> Loss:
        assert isinstance(micro, TokenBatch)
        assert self.teacher is not None, "prepare() loads the teacher"
        asked = micro.asked(self.device)
        with torch.no_grad():
            taught = logits_at(self.teacher.model, asked.input_ids, asked.columns)
        logits = logits_at(model, asked.input_ids, asked.columns)
        loss = self.setup.function(logits, taught, asked.targets)
        return self.with_terms(loss._replace(nats=micro.weighted(loss.nats)), micro, asked, logits)
