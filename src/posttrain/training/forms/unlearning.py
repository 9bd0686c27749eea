"""The forms of unlearning: for `grad_ascent`, `grad_diff`, `npo` and `simnpo`, and for `rmu`.

New rows are the forget set, replayed rows the retain set. Both are read as for `sft`, and may share a micro batch. For
`rmu` the states after a block come from the whole model with `output_hidden_states`; the blocks after it are computed
and not used.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from posttrain.data.batching import length_batches
from posttrain.data.chat import IGNORED, Encoded
from posttrain.data.preferences import FromTargets
from posttrain.data.records import Conversation
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.models.adapters import virtual_columns
from posttrain.models.logits import core_of, keeps_logits, logits_at
from posttrain.models.meter import Meter
from posttrain.objectives._loss import Loss
from posttrain.objectives._unlearning import ForgetAndRetain, RetainConfig, UnlearningConfig, token_nats
from posttrain.objectives.rmu import RmuConfig, direction
from posttrain.training.forms.base import FormSetup, MicroBatch, Preparation, Scales
from posttrain.training.forms.tokens import TokenBatch, TokensForm

__all__ = ["RepresentationsForm", "UnlearningForm", "check_sets", "states_after"]


class ForgettingForm(TokensForm):
    """A form with forget rows and retain rows, which each have a mean of their own."""

    takes_terms: ClassVar[bool] = False
    old_apart: ClassVar[bool] = False

    @classmethod
    def needs_rows(cls, objective: Any) -> bool:
        return True

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Any]:
        """Make records to forget: the present answer to each question. Questions are left out that the untouched model
        does not answer, or to which it gives the wanted answer.
        """
        made = []
        for target, answer in zip(targets, present(), strict=True):
            *before, wanted = target.messages
            if answer.strip() and answer.strip() != wanted.content.strip():
                made.append(replace(target, messages=(*before, replace(wanted, content=answer.strip()))))
        return FromTargets(made, len(targets) - len(made))

    @abstractmethod
    def retain_weight(self) -> float:
        """Return the weight of the mean over the retain rows."""

    def scales(self, new_units: int, old_units: int) -> Scales:
        """Return the scales of two means; that of the retain rows is weighted."""
        weight = self.retain_weight() * self.setup.old_weight
        return Scales(1.0 / max(new_units, 1), weight / max(old_units, 1))


def check_sets(objective: str, retains: str, preparation: Preparation) -> None:
    """Raise ConfigError if a needed retain set is missing; raise DataError with the rows that are in both sets."""
    forget, retain = preparation.new, preparation.old
    if retains == "must" and not retain:
        mend = "give replay: {kind: file, data: retain.jsonl, share: 0.5}, or another replay"
        raise ConfigError(Problem("replay", f"{objective} needs a retain set, which is replayed", mend))
    kept = {tuple(row.input_ids): row.location for row in retain}
    twice = [(row.location, kept[ids]) for row in forget if (ids := tuple(row.input_ids)) in kept]
    if twice:
        mend = "take one of them out"
        raise DataError(*(Problem(at, f"to be forgotten, and retained by {kept}", mend) for at, kept in twice[:20]))


class UnlearningForm(ForgettingForm):
    """A form that forgets and retains the words of rows."""

    objective: UnlearningConfig

    def __init__(self, setup: FormSetup) -> None:
        super().__init__(setup)
        self.before: dict[tuple[int, ...], float] = {}
        """The log-probabilities of forget rows before training, by the numbers of the row."""

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        """Return whether the divergence on retain rows is used, which needs the reference."""
        return isinstance(objective, RetainConfig) and objective.retain == "kl"

    @classmethod
    def replay_problem(cls, objective: Any) -> Problem | None:
        """Return a problem for objectives that have no retain set."""
        if isinstance(objective, UnlearningConfig) and objective.retains == "never":
            return Problem("replay", f"{objective.kind} retains nothing", "use grad_diff, or leave replay out")
        return None

    def units(self, row: Encoded) -> int:
        return 1 if self.objective.per_row else super().units(row)

    def retain_weight(self) -> float:
        return self.objective.retain_weight if isinstance(self.objective, RetainConfig) else 0.0

    def prepare(self, preparation: Preparation) -> None:
        """Check the two sets; compute the forget rows' log-probabilities before training if the objective needs them.
        Raise ConfigError or DataError if a set does not fit the objective.
        """
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
        if not self.objective.asks_before:
            return
        rows = [*preparation.new, *preparation.validation]
        sizes = [self.size(row) for row in rows]
        work = Meter("asking the model before training", len(rows), "rows")
        with preparation.reference.model() as reference, work as meter:
            for numbers in length_batches(sizes, tokens=preparation.tokens, seed=0, epoch=0):
                part = [rows[i] for i in numbers]
                batch = self.tensors(part).asked(self.device)
                logits = logits_at(reference, batch.read_by(reference), batch.columns)
                logps = -token_nats(logits, batch.targets).sum(1)  # (B,)
                self.before |= {tuple(self.numbers(row)): v for row, v in zip(part, logps.tolist(), strict=True)}
                meter.more(len(numbers), tokens=sum(sizes[i] for i in numbers))

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        batch: TokenBatch = micro.tensors.asked(self.device)
        old = micro.old.to(self.device)
        before = before_logits = None
        if self.before:
            rows = zip(micro.rows, micro.old.tolist(), strict=True)
            known = [0.0 if is_old else self.before[tuple(self.numbers(row))] for row, is_old in rows]
            before = torch.tensor(known, device=self.device)
        if bool(micro.old.any()) and self.asks_reference(self.objective):
            with self.before_training() as reference:
                before_logits = logits_at(reference, batch.read_by(reference)[old], batch.columns)
        logits = logits_at(model, batch.read_by(model), batch.columns)
        loss = self.setup.function(ForgetAndRetain(logits, batch.targets, old, before, before_logits))
        return loss._replace(nats=batch.weighted(loss.nats))


def states_after(model: nn.Module, input_ids: Tensor, layer: int) -> Tensor:
    """Return hidden states (B, T, D) after block `layer` (from 0; those of the last block include the final norm)."""
    keeps = keeps_logits(type(core_of(model)))  # type: ignore[arg-type]  # a class can be hashed
    options: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}
    said = model(input_ids=input_ids, use_cache=False, output_hidden_states=True, **options)
    states: Tensor = said.hidden_states[layer + 1]
    return states[:, virtual_columns(model) :]


class RepresentationsForm(ForgettingForm):
    """A form that moves hidden states of forget rows and holds those of retain rows; one unit per row."""

    objective: RmuConfig

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        return True

    def units(self, row: Encoded) -> int:
        return 1

    def retain_weight(self) -> float:
        return self.objective.alpha

    def prepare(self, preparation: Preparation) -> None:
        """Check the layer and the two sets; report the present norm of the states and the norm that is trained. Raise
        ConfigError or DataError if they do not fit.
        """
        blocks = int(core_of(preparation.model).config.get_text_config().num_hidden_layers)
        layer = self.objective.layer
        if layer >= blocks - 1:
            cause = f"the model has {blocks} blocks, 0 to {blocks - 1}, and the last one cannot be led astray"
            raise ConfigError(Problem("objective.layer", cause, f"give a layer from 0 to {blocks - 2}"))
        check_sets("rmu", "must", preparation)
        forget = preparation.new
        sizes = [self.size(row) for row in forget]
        total = count = 0.0
        with Meter("measuring the states of the forget rows", len(forget), "rows") as meter:
            for numbers in length_batches(sizes, tokens=preparation.tokens, seed=0, epoch=0):
                batch = self.tensors([forget[i] for i in numbers])
                mask = (batch.targets != IGNORED).to(self.device)
                with preparation.reference.model() as reference:
                    ids = batch.read_by(reference).to(self.device)
                    lengths = states_after(reference, ids, layer).float().norm(dim=-1)
                total, count = total + float((lengths * mask).sum()), count + float(mask.sum())
                meter.more(len(numbers), tokens=sum(sizes[i] for i in numbers))
        preparation.say(
            f"rmu: the states after block {layer} are {total / max(count, 1):.2f} long on the forget rows; "
            f"they shall become {self.objective.steering:g} long"
        )

    @property
    def supervise_all(self) -> bool:
        """Return whether the states of every token count; the batch's targets then show which tokens exist."""
        return self.objective.tokens == "all"

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        batch: TokenBatch = micro.tensors
        layer = self.objective.layer
        old = micro.old.to(self.device)
        before = None
        if bool(micro.old.any()):
            with self.before_training() as reference:
                before = states_after(reference, batch.read_by(reference).to(self.device)[old], layer)
        states = states_after(model, batch.read_by(model).to(self.device), layer)
        unit = direction(states.shape[-1], self.objective.seed).to(states.device)
        return self.setup.function(states, (batch.targets != IGNORED).to(self.device), old, unit, before)
