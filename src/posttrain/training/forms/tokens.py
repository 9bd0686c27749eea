"""Rows of tokens, some of which are learned: what `sft` and `clm` train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.batching import collate
from posttrain.data.chat import IGNORED, Encoded, LossOn, encode_all
from posttrain.data.lengths import EncodeResult
from posttrain.data.preferences import FromTargets
from posttrain.data.records import Conversation, Record
from posttrain.models.head_loss import Function, PlainHead, chunk_rows, chunked, chunked_nll, plain_head, states_at
from posttrain.models.logits import logits_at
from posttrain.objectives._loss import Loss
from posttrain.objectives._tokens import TokenNll
from posttrain.training.forms.base import EncodeSettings, Form, MicroBatch

__all__ = ["TokenBatch", "TokensForm", "token_batch"]


TERM_COPIES = 4
"""A term on logits holds the distributions of two models and their gradients, where cross-entropy holds one tensor."""


@dataclass(frozen=True)
class TokenBatch(MicroBatch):
    """input_ids: (B, T), right-padded; targets: (B, T), the token each position should predict, -100 where nothing is
    asked; columns: positions that any row supervises, (K,), or None when that is all of them; weights: (B,) what each
    row's loss is multiplied by, None where that is 1 for all.
    """

    input_ids: Tensor
    targets: Tensor
    columns: Tensor | None
    weights: Tensor | None = None


def token_batch(
    rows: Sequence[Encoded],
    row_numbers: list[int],
    *,
    pad_id: int,
    supervise_all: bool = False,
    old: Sequence[bool] | None = None,
) -> TokenBatch:
    """Collate, and shift: position t has token t + 1 as its target, so the last token is a target only.

    supervise_all: every token is a target (clm), whatever the labels say.
    """
    batch = collate(rows, pad_id)
    labels = batch["labels"]
    if supervise_all:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    targets = labels[:, 1:]
    asked = (targets != IGNORED).any(0)  # (T,)
    return TokenBatch(
        row_numbers,
        torch.tensor(old if old is not None else [False] * len(rows)),
        input_ids=batch["input_ids"][:, :-1],
        targets=targets,
        columns=None if bool(asked.all()) else asked.nonzero()[:, 0],
        weights=torch.tensor([row.weight for row in rows]) if any(row.weight != 1.0 for row in rows) else None,
    )


class TokensForm(Form):
    """One sequence per row."""

    mixes: ClassVar[bool] = True
    takes_terms: ClassVar[bool] = True

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[Encoded]:
        """Conversations, pairs and texts, rendered with the chat template."""
        return encode_all(
            records,
            tokenizer,
            max_length=settings.max_length,
            over_long=settings.over_long,
            loss_on=cls.loss_on(settings.objective),
            on_bad_row=settings.on_bad_row,
        )

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Any]:
        """The targets as they are."""
        return FromTargets(list(targets), 0)

    @staticmethod
    def loss_on(objective: Any) -> LossOn:
        """Whose tokens are learned."""
        supervises: LossOn = objective.supervises
        return supervises

    @property
    def supervise_all(self) -> bool:
        """Whether every token is a target."""
        return self.loss_on(self.setup.objective) == "all"

    @staticmethod
    def tokens_of(row: Encoded) -> int:
        return len(row.input_ids)

    def units(self, row: Encoded) -> int:
        if self.supervise_all:
            return len(row.input_ids) - 1
        return sum(label != IGNORED for label in row.labels[1:])

    def numbers(self, row: Encoded) -> list[int]:
        weight = [] if row.weight == 1.0 else [round(row.weight * 1e6)]
        return [len(row.input_ids), *row.input_ids, *row.labels, *weight]

    def micro_batch(self, rows: Sequence[Encoded], row_numbers: list[int], old: Sequence[bool]) -> TokenBatch:
        return token_batch(rows, row_numbers, pad_id=self.setup.pad_id, supervise_all=self.supervise_all, old=old)

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        assert isinstance(micro, TokenBatch)
        head = plain_head(model) if isinstance(self.setup.objective, TokenNll) else None
        if head is not None:
            return self.loss_in_chunks(model, head, micro)
        input_ids = micro.input_ids.to(self.device)
        columns = micro.columns.to(self.device) if micro.columns is not None else None
        targets = micro.targets.to(self.device)
        targets = targets if columns is None else targets[:, columns]
        logits = logits_at(model, input_ids, columns)
        loss = self.setup.function(logits, targets)
        if micro.weights is not None:
            loss = loss._replace(nats=loss.nats * micro.weights.to(loss.nats))
        return self.with_terms(loss, micro, input_ids, columns, logits, targets)

    def loss_in_chunks(self, model: nn.Module, head: PlainHead, micro: TokenBatch) -> Loss:
        """Token cross-entropy and terms, the output head going from chunk to chunk over the supervised positions."""
        input_ids, targets = micro.input_ids.to(self.device), micro.targets.to(self.device)
        asked = targets != IGNORED  # (B, T)
        row, said = asked.nonzero()[:, 0], targets[asked]  # (N,)
        states = states_at(model, input_ids, asked)  # (N, D)
        nats = chunked_nll(states, head, said)
        summed = nats.new_zeros(len(targets)).index_add(0, row, nats)  # (B,)
        if micro.weights is not None:
            summed = summed * micro.weights.to(summed)
        metrics: dict[str, Tensor] = {}
        if self.setup.terms:
            assert self.setup.reference is not None
            with self.setup.reference.model() as reference:
                before = states_at(reference, input_ids, asked)
                fixed = plain_head(reference)
            assert fixed is not None, "the reference is the model before training, with the same head"
            for term in self.setup.terms:
                of_tokens = term_of_tokens(term, before, fixed, said, micro.old.to(self.device)[row])
                each = chunked(states, head, of_tokens, rows=chunk_rows(len(head.weight) * TERM_COPIES))
                added = each.new_zeros(len(targets)).index_add(0, row, each)
                summed = summed + added.to(summed)
                metrics[f"penalty_{term.kind}"] = added.detach()
        return Loss(summed, asked.sum(1), metrics)

    def with_terms(
        self,
        loss: Loss,
        micro: MicroBatch,
        input_ids: Tensor,
        columns: Tensor | None,
        logits: Tensor,
        targets: Tensor,
    ) -> Loss:
        """The loss with the terms on logits added, each also a metric of its own (`penalty_<kind>`, nats per unit)."""
        if not self.setup.terms:
            return loss
        assert self.setup.reference is not None
        with self.setup.reference.model() as reference:
            before = logits_at(reference, input_ids, columns)
        nats, metrics = loss.nats, dict(loss.metrics)
        for term in self.setup.terms:
            added = term.function(logits, before, targets, micro.old.to(self.device))
            nats = nats + added.to(nats)
            metrics[f"penalty_{term.kind}"] = added.detach()
        return loss._replace(nats=nats, metrics=metrics)


def term_of_tokens(term: Any, before: Tensor, head: PlainHead, said: Tensor, old: Tensor) -> Function:
    """A term on logits (`kl_to_base`) as a function of a chunk's logits, each token a row of its own.

    before: (N, D), the reference's hidden states; head: its output head; said: (N,) targets; old: (N,) bool.
    """
    precision = head.precision()

    def nats(logits: Tensor, at: slice, wants: bool) -> tuple[Tensor, Tensor | None]:
        base = head.logits(before[at], precision)[:, None]
        with torch.set_grad_enabled(wants):
            now = logits.requires_grad_(wants)
            found: Tensor = term.function(now[:, None], base, said[at, None], old[at])  # (n,)
            total = found.sum()
        if not wants:
            return found, None
        if not total.requires_grad:  # no token of this chunk is of the kind that the term looks at
            return found, torch.zeros_like(logits)
        return found.detach(), torch.autograd.grad(total, now)[0]

    return nats
