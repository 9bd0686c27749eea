"""What every form of training data has: rows, micro batches, and the loss of a micro batch.

The trainer knows steps, gradients and checkpoints; a form knows what a row is. A step's gradient is that of

    scale_new * sum over new rows of nats + scale_old * sum over old (replayed) rows of nats

where the scales come from the units of the *whole* step, so that it does not matter how a step is cut into micro
batches or processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.config.base import Config
from posttrain.data.lengths import EncodeResult, OverLong
from posttrain.data.preferences import FromTargets
from posttrain.data.readers import Format, OnBadRow
from posttrain.data.records import Conversation, Record
from posttrain.errors import ConfigError, Problem
from posttrain.models.notes import Head
from posttrain.objectives._loss import Loss
from posttrain.training.reference import Reference

__all__ = ["EncodeSettings", "Form", "FormSetup", "Head", "MicroBatch", "Preparation", "Row", "Scales"]


class Row(Protocol):
    """An encoded row; each form has its own class."""

    @property
    def location(self) -> str:
        """Where it comes from, such as `rows.jsonl:17`."""


class EncodeSettings(NamedTuple):
    """objective: the config of what the rows are for; the rest as in `encode_all`."""

    objective: Config
    max_length: int
    over_long: OverLong = "raise"
    on_bad_row: OnBadRow = "fail"


class Scales(NamedTuple):
    """What the summed nats of new and of old rows are multiplied by."""

    new: float
    old: float


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together. Each form adds its tensors.

    row_numbers: for messages; old: which rows are replayed ones, (B,) bool; counts: False in a filler that only keeps
    a process in step with the others: it goes through the model and adds nothing.
    """

    row_numbers: list[int]
    old: Tensor
    counts: bool = field(default=True, kw_only=True)


class FormSetup(NamedTuple):
    """objective: its config; function: the registered pure function; pad_id: any id, padding is never seen;
    old_weight: the weight of replayed rows where they are not part of one mean with the new ones;
    reference: the model before training, for forms and terms that need it; terms: losses on logits, such as
    `kl_to_base`, that are added where a form has logits.
    """

    objective: Config
    function: Callable[..., Loss]
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    old_weight: float = 1.0
    reference: Reference | None = None
    terms: Sequence[Any] = ()


class Preparation(NamedTuple):
    """What a form may do before the first step: rows by number (old ones from `new_rows` up) and validation rows;
    tokens: padded tokens of a micro batch; folder: of the run, for what is worth keeping; key: fingerprint of the
    model that training starts from; reference: that model, before the first step at least; read: numbers of the rows
    that the run will read, all where that is not known; seed: of the run.
    """

    model: nn.Module
    rows: Sequence[Any]
    new_rows: int
    validation: Sequence[Any]
    tokens: int
    folder: Path | None
    key: str
    reference: Reference
    say: Callable[[str], None]
    read: Container[int] = range(2**63)
    seed: int = 0


class Form(ABC):
    """One form of training data."""

    mixes: ClassVar[bool] = True
    """Replayed rows go through this form too; otherwise they are learned as conversations (`sft`) beside it."""
    old_apart: ClassVar[bool] = True
    """Whether replayed rows may be learned by another form beside it (`replay: {loss: kl}`)."""
    needs_reference: ClassVar[bool] = False
    """Whether the model as it was before training must be at hand while training (see `Reference`)."""
    takes_terms: ClassVar[bool] = False
    """Whether losses on logits (`kl_to_base`) can be added."""
    head: ClassVar[Head] = "causal"
    """Which head the model has."""
    reads: ClassVar[Format] = "auto"
    """What rows hold where their source does not say; `auto` looks at each row's keys."""
    unit: ClassVar[str] = "token"
    """What the loss is a mean over, for words in reports: token, pair, row."""

    def __init__(self, setup: FormSetup) -> None:
        self.setup = setup

    @classmethod
    def asks_reference(cls, objective: Config) -> bool:
        """Whether this objective asks the reference while training; some do so with some settings only."""
        return cls.needs_reference

    @classmethod
    def resolved(cls, objective: Config, records: Callable[[], Sequence[Record]]) -> Config:
        """The objective with what the new rows decide written into it, such as the names of the labels. Asked of forms
        with a head, before the model is loaded; `records` reads them."""
        return objective

    @classmethod
    def outputs(cls, objective: Config) -> tuple[str, ...]:
        """Names of a head's outputs, of an objective that is resolved."""
        return ("score",)

    @classmethod
    def head_settings(cls, objective: Config) -> dict[str, Any]:
        """What a model with this head must know of how it was trained, to be used afterwards."""
        return {}

    @classmethod
    @abstractmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[Any]:
        """Records as rows, over-long and bad ones as the settings say. DataError naming every row of another kind."""

    @classmethod
    def replay_problem(cls, objective: Config) -> Problem | None:
        """What is wrong with replayed rows beside this objective; None where they can be there."""
        return None

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Any]:
        """A change's targets (question and new answer) as records to learn from; present: asks the untouched model for
        its present answers to them. ConfigError for a form that cannot learn from answers.
        """
        raise ConfigError(
            Problem("objective", "a change's targets are questions and answers, which it does not learn", "give data")
        )

    @staticmethod
    @abstractmethod
    def tokens_of(row: Any) -> int:
        """Tokens that the model reads for a row, padding left out."""

    def size(self, row: Any) -> int:
        """What a row takes of a batch's budget; at least `tokens_of`."""
        return self.tokens_of(row)

    @abstractmethod
    def units(self, row: Any) -> int:
        """What the row adds to the number that a step's loss is divided by."""

    @abstractmethod
    def numbers(self, row: Any) -> list[int]:
        """Everything in a row that decides its loss, as integers, for fingerprints."""

    @abstractmethod
    def micro_batch(self, rows: Sequence[Any], row_numbers: list[int], old: Sequence[bool]) -> MicroBatch:
        """Rows as tensors."""

    @abstractmethod
    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        """Forward pass and objective. The tensors come back on the model's device."""

    def scales(self, new_units: int, old_units: int) -> Scales:
        """One mean over the step's units where replayed rows are mixed in; else two means, the old one weighted."""
        if self.mixes:
            one = 1.0 / max(new_units + old_units, 1)
            return Scales(one, one)
        return Scales(1.0 / max(new_units, 1), self.setup.old_weight / max(old_units, 1))

    def check(self, *, deepspeed: bool, sharded: bool) -> None:  # noqa: B027  # most forms run anywhere
        """ConfigError where this form cannot train in shards; sharded: by FSDP."""

    def prepare(self, preparation: Preparation) -> None:  # noqa: B027  # most forms need nothing
        """Called once, before the first step, with the model at rest: reference log-probabilities, for instance."""

    def begin_step(self, model: nn.Module, micro_batches: Sequence[MicroBatch], number: int) -> None:  # noqa: B027
        """Called before the first micro batch of a step, for what depends on all of its rows; number: of the steps done
        before, -1 where the rows are those of a validation."""

    def end_step(self, model: nn.Module) -> None:  # noqa: B027
        """Called once the optimiser has moved the weights."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, on top of what is made before the first step anew."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take up `state`."""

    def validated(self) -> dict[str, float]:
        """Scores over the validation rows that are no mean of rows (an F1, say); called once all have been seen."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the model is; set by the trainer."""
        return self._device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device
