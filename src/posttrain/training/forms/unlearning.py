"""Rows to forget and rows to retain: the form of `grad_ascent`, `grad_diff`, `npo` and `simnpo`.

New rows are the forget set, replayed rows the retain set; both are read as for `sft`, and may share a micro batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from posttrain.data.batching import length_batches
from posttrain.data.chat import Encoded
from posttrain.data.preferences import FromTargets
from posttrain.data.records import Conversation
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.models.logits import logits_at
from posttrain.models.meter import Meter
from posttrain.objectives._loss import Loss
from posttrain.objectives._unlearning import ForgetAndRetain, RetainConfig, UnlearningConfig, token_nats
from posttrain.training.forms.base import MicroBatch, Preparation, Scales
from posttrain.training.forms.tokens import TokenBatch, TokensForm

__all__ = ["UnlearningForm", "check_sets", "forget_from_targets"]


@dataclass(frozen=True)
class ForgetBatch(TokenBatch):
    """before_logps: (B,) log-probability of each forget row before training, 0 for retain rows."""

    before_logps: Tensor | None = None


def check_sets(objective: str, retains: str, preparation: Preparation) -> None:
    """ConfigError when a retain set is missing or of no use; DataError naming rows that are in both sets."""
    forget, retain = preparation.new, preparation.old
    if retains == "must" and not retain:
        mend = "give replay: {kind: file, data: retain.jsonl, share: 0.5}, or another replay"
        raise ConfigError(Problem("replay", f"{objective} needs a retain set, which is replayed", mend))
    kept = {tuple(row.input_ids): row.location for row in retain}
    twice = [row for row in forget if tuple(row.input_ids) in kept]
    if twice:
        raise DataError(
            *(
                Problem(
                    row.location,
                    f"to be forgotten, and retained by {kept[tuple(row.input_ids)]}",
                    "take one of them out",
                )
                for row in twice[:20]
            )
        )


def forget_from_targets(targets: Sequence[Conversation], present: Sequence[str]) -> FromTargets[Conversation]:
    """The rows that a change wants forgotten: each target's question with the answer that the untouched model gives.

    Questions that it does not answer, or answers as wanted, are left out.
    """
    made = []
    for target, answer in zip(targets, present, strict=True):
        *before, wanted = target.messages
        if answer.strip() and answer.strip() != wanted.content.strip():
            made.append(replace(target, messages=(*before, replace(wanted, content=answer.strip()))))
    return FromTargets(made, len(targets) - len(made))


class UnlearningForm(TokensForm):
    """Forget rows and retain rows, each with a mean of their own."""

    takes_terms: ClassVar[bool] = False
    old_apart: ClassVar[bool] = False
    objective: UnlearningConfig

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        self.before: dict[tuple[int, ...], float] = {}

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        """The divergence on retain rows asks it."""
        return isinstance(objective, RetainConfig) and objective.retain == "kl"

    @classmethod
    def needs_rows(cls, objective: Any) -> bool:
        return True

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Any]:
        """Learn to forget the present answers."""
        return forget_from_targets(targets, present())

    @classmethod
    def replay_problem(cls, objective: Any) -> Problem | None:
        """Say which objectives have no retain set."""
        if isinstance(objective, UnlearningConfig) and objective.retains == "never":
            return Problem("replay", f"{objective.kind} retains nothing", "use grad_diff, or leave replay out")
        return None

    def units(self, row: Encoded) -> int:
        return 1 if self.objective.per_row else super().units(row)

    def scales(self, new_units: int, old_units: int) -> Scales:
        """Two means; `retain_weight` weighs that of the retain rows."""
        weight = self.objective.retain_weight if isinstance(self.objective, RetainConfig) else 0.0
        return Scales(1.0 / max(new_units, 1), weight * self.setup.old_weight / max(old_units, 1))

    def prepare(self, preparation: Preparation) -> None:
        """Check the two sets; ask the model before training how likely the forget rows are, where that is needed."""
        kind = self.objective.kind
        check_sets(kind, self.objective.retains, preparation)
        has_retain = bool(preparation.old)
        problem = self.replay_problem(self.objective) if has_retain else None
        if problem is not None:
            raise ConfigError(problem)
        if self.asks_reference(self.objective) and not has_retain:
            cause = "retain: kl compares the outputs on replayed rows, and there are none"
            raise ConfigError(Problem("replay", cause, "give replay, or leave retain out"))
        if "max_nll" in type(self.objective).model_fields and self.objective.max_nll is None:  # type: ignore[attr-defined]
            guess = math.log(preparation.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
            preparation.say(
                f"{kind} has no floor: the loss runs to minus infinity and takes everything else with it; set "
                f"objective.max_nll (guessing gives {guess:.1f} nats), or stop early"
            )
        if self.objective.asks_before:
            rows = [*preparation.new, *preparation.validation]
            with preparation.reference.model() as reference:
                self._ask_before(reference, rows, preparation.tokens)

    def _ask_before(self, reference: nn.Module, rows: Sequence[Encoded], tokens: int) -> None:
        """Keep the log-probability of each row under the model before training."""
        sizes = [self.size(row) for row in rows]
        with Meter("asking the model before training", len(rows), "rows") as meter:
            for numbers in length_batches(sizes, tokens=tokens, seed=0, epoch=0):
                part = [rows[i] for i in numbers]
                micro = super().micro_batch(part, [False] * len(part))
                logits, targets = self._outputs(reference, micro)
                logps = -token_nats(logits, targets).sum(1)  # (B,)
                self.before |= {tuple(self.numbers(row)): v for row, v in zip(part, logps.tolist(), strict=True)}
                meter.more(len(numbers), tokens=sum(sizes[i] for i in numbers))

    def micro_batch(self, rows: Sequence[Encoded], old: Sequence[bool]) -> ForgetBatch:
        batch = super().micro_batch(rows, old)
        known = None
        if self.before:
            pairs = zip(rows, old, strict=True)
            known = torch.tensor([0.0 if is_old else self.before[tuple(self.numbers(r))] for r, is_old in pairs])
        return ForgetBatch(**vars(batch), before_logps=known)

    def _outputs(self, model: nn.Module, micro: TokenBatch) -> tuple[Tensor, Tensor]:
        """Logits (B, K, V) and targets (B, K) at the positions that any row supervises."""
        asked = micro.asked(self.device)
        return logits_at(model, asked.input_ids, asked.columns), asked.targets

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        assert isinstance(micro, ForgetBatch)
        before_logits = None
        if bool(micro.old.any()) and self.asks_reference(self.objective):
            assert self.setup.reference is not None
            columns = micro.columns.to(self.device) if micro.columns is not None else None
            with self.setup.reference.model() as reference:
                before_logits = logits_at(reference, micro.input_ids[micro.old].to(self.device), columns)
        logits, targets = self._outputs(model, micro)
        before = micro.before_logps.to(self.device) if micro.before_logps is not None else None
        loss = self.setup.function(ForgetAndRetain(logits, targets, micro.old.to(self.device), before, before_logits))
        return loss._replace(nats=micro.weighted(loss.nats))
