"""The form of `sft` and `clm`: rows of tokens, some of which are learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from posttrain.data.batching import collate
from posttrain.data.chat import IGNORED, Encoded, LossOn, encode_all
from posttrain.data.lengths import EncodeResult
from posttrain.data.preferences import FromTargets
from posttrain.data.records import Conversation, Record
from posttrain.models.head_loss import Function, PlainHead, chunk_rows, chunked, chunked_nll, plain_head, states_at
from posttrain.models.logits import logits_at
from posttrain.models.marks import mark
from posttrain.objectives._loss import Loss, TokenNll
from posttrain.training.forms.base import EncodeSettings, Form, MicroBatch

__all__ = ["TokenBatch", "TokensForm", "token_batch"]

TERM_COPIES = 4
"""How many tensors of the logits' size a term on logits holds: the distributions of two models and their gradients.
Cross-entropy holds one tensor of this size.
"""


class TokenBatch(NamedTuple):
    """A micro batch of rows of tokens.

    input_ids: (B, T), right-padded; targets: (B, T), the token that each position should predict, -100 for positions
    that are not supervised; columns: the positions that any row supervises, (K,), or None if all are; prompts: (B,) the
    number of tokens before each row's answer, 0 if there are none or if the row has several answers; weights: (B,) the
    factor of each row's loss, or None if it is 1 for all.
    """

    input_ids: Tensor
    targets: Tensor
    columns: Tensor | None
    prompts: Tensor
    weights: Tensor | None = None

    def read_by(self, model: nn.Module) -> Tensor:
        """Return the ids as this model reads them, (B, T): a part of it may need marks on the prompts' tokens."""
        return mark(model, self.input_ids, self.prompts)

    def asked(self, device: torch.device) -> TokenBatch:
        """Return the batch on a device, with only the supervised columns of the targets, (B, K)."""
        targets = self.targets.to(device)
        columns = None if self.columns is None else self.columns.to(device)
        asked = targets if columns is None else targets[:, columns]
        return self._replace(input_ids=self.input_ids.to(device), targets=asked, columns=columns)

    def logits(self, model: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return logits (N, V) of the supervised positions, row by row, and the row index of each, (N,)."""
        batch = self.asked(device)
        asked = batch.targets != IGNORED
        return logits_at(model, batch.read_by(model), batch.columns)[asked], asked.nonzero()[:, 0]

    def weighted(self, nats: Tensor) -> Tensor:
        """Multiply the losses of the rows, (B,), by the weights of the rows."""
        return nats if self.weights is None else nats * self.weights.to(nats)


def token_batch(rows: Sequence[Encoded], *, pad_id: int, supervise_all: bool = False) -> TokenBatch:
    """Collate rows and shift: position t has token t + 1 as its target, so the last token is only a target.
    supervise_all: every token is a target (clm), and labels are ignored.
    """
    batch = collate(rows, pad_id)
    labels = batch["labels"]
    learned = functional.pad(labels != IGNORED, (1, 0))  # (B, 1 + T)
    begins = learned[:, 1:] & ~learned[:, :-1]
    prompts = torch.where(begins.sum(1) == 1, begins.int().argmax(1), 0)
    if supervise_all:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    targets = labels[:, 1:]
    asked = (targets != IGNORED).any(0)  # (T,)
    columns = None if bool(asked.all()) else asked.nonzero()[:, 0]
    weights = torch.tensor([row.weight for row in rows]) if any(row.weight != 1.0 for row in rows) else None
    return TokenBatch(batch["input_ids"][:, :-1], targets, columns, prompts, weights)


class TokensForm(Form):
    """A form with one sequence per row, of which some tokens or all are learned."""

    mixes: ClassVar[bool] = True
    takes_terms: ClassVar[bool] = True

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[Encoded]:
        """Render conversations, pairs and texts with the chat template, and encode them."""
        loss_on: LossOn = settings.objective.supervises
        return encode_all(records, tokenizer, max_length=settings.max_length, loss_on=loss_on, **settings.bad_rows)

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Any]:
        """Use the targets as they are."""
        return FromTargets(list(targets), 0)

    @property
    def supervise_all(self) -> bool:
        """Return whether every token is a target."""
        return bool(self.objective.supervises == "all")

    def units(self, row: Encoded) -> int:
        if self.supervise_all:
            return len(row.input_ids) - 1
        return sum(label != IGNORED for label in row.labels[1:])

    def numbers(self, row: Encoded) -> list[int]:
        weight = [] if row.weight == 1.0 else [round(row.weight * 1e6)]
        return [len(row.input_ids), *row.input_ids, *row.labels, *weight]

    def tensors(self, rows: Sequence[Encoded]) -> TokenBatch:
        return token_batch(rows, pad_id=self.setup.pad_id, supervise_all=self.supervise_all)

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        batch: TokenBatch = micro.tensors
        head = plain_head(model) if isinstance(self.objective, TokenNll) else None
        if head is not None:
            return self.loss_in_chunks(model, head, batch, micro.old)
        batch = batch.asked(self.device)
        logits = logits_at(model, batch.read_by(model), batch.columns)
        return self.with_terms(self.setup.function(logits, batch.targets), batch, micro.old, logits)

    def loss_in_chunks(self, model: nn.Module, head: PlainHead, batch: TokenBatch, old: Tensor) -> Loss:
        """Compute token cross-entropy and terms; the output head computes the supervised positions chunk by chunk."""
        targets = batch.targets.to(self.device)
        asked = targets != IGNORED  # (B, T)
        row, said = asked.nonzero()[:, 0], targets[asked]  # (N,)
        states = states_at(model, batch.read_by(model).to(self.device), asked)  # (N, D)
        nats = chunked_nll(states, head, said)
        summed = batch.weighted(nats.new_zeros(len(targets)).index_add(0, row, nats))  # (B,)
        loss = Loss(summed, asked.sum(1), {})
        if self.setup.terms:
            with self.before_training() as reference:
                before = states_at(reference, batch.read_by(reference).to(self.device), asked)
                fixed = plain_head(reference)
            assert fixed is not None, "the reference is the model before training, with the same head"
            for term in self.setup.terms:
                of_tokens = term_of_tokens(term, before, fixed, said, old.to(self.device)[row])
                each = chunked(states, head, of_tokens, rows=chunk_rows(len(head.weight) * TERM_COPIES))
                loss = _plus(loss, term, each.new_zeros(len(targets)).index_add(0, row, each))
        return loss

    def with_terms(self, loss: Loss, batch: TokenBatch, old: Tensor, logits: Tensor) -> Loss:
        """Weight the rows and add the terms on logits. batch: as returned by `TokenBatch.asked`; logits: (B, K, V)."""
        loss = loss._replace(nats=batch.weighted(loss.nats))
        if self.setup.terms:
            with self.before_training() as reference:
                before = logits_at(reference, batch.read_by(reference), batch.columns)
            for term in self.setup.terms:
                loss = _plus(loss, term, term.function(logits, before, batch.targets, old.to(self.device)))
        return loss


def _plus(loss: Loss, term: Any, added: Tensor) -> Loss:
    """Add the value of a term to the loss and to the metrics (`penalty_<kind>`, nats per unit). added: (B,)."""
    metrics = {**loss.metrics, f"penalty_{term.kind}": added.detach()}
    return loss._replace(nats=loss.nats + added.to(loss.nats), metrics=metrics)


def term_of_tokens(term: Any, before: Tensor, head: PlainHead, said: Tensor, old: Tensor) -> Function:
    """Turn a term on logits (`kl_to_base`) into a function of a chunk's logits; each token counts as one row. before:
    (N, D), the reference's hidden states; head: its output head; said: (N,) targets; old: (N,) bool.
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
        if not total.requires_grad:  # the term does not act on any token of this chunk
            return found, torch.zeros_like(logits)
        return found.detach(), torch.autograd.grad(total, now)[0]

    return nats
