"""Define what every form of training data has: rows, micro batches, and the loss of a micro batch.

The trainer handles steps, gradients and checkpoints; a form knows what a row is. The gradient of a step is that of

    scale_new * sum over new rows of nats + scale_old * sum over old (replayed) rows of nats

The scales follow from the units of the *whole* step. Therefore the result does not depend on how a step is cut into
micro batches and shared among processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.config.base import Config
from posttrain.data.lengths import EncodeResult, Limits, OverLong
from posttrain.data.preferences import FromTargets
from posttrain.data.readers import Format, OnBadRow
from posttrain.data.records import Conversation, Record
from posttrain.errors import ConfigError, Problem
from posttrain.models.notes import Head
from posttrain.objectives._loss import Loss
from posttrain.training.reference import Reference

__all__ = ["EncodeSettings", "Form", "FormSetup", "Head", "MicroBatch", "Preparation", "Row", "Scales"]


class Row(Protocol):
    """An encoded row; each form has its own row class."""

    @property
    def location(self) -> str:
        """Return the location of the row, such as `rows.jsonl:17`."""


class EncodeSettings(NamedTuple):
    """Settings of encoding. objective: config of the objective that uses the rows; the others are as in `Limits`."""

    objective: Any
    max_length: int
    over_long: OverLong = "raise"
    on_bad_row: OnBadRow = "fail"

    @property
    def bad_rows(self) -> dict[str, Any]:
        """Return, as keyword arguments, what to do with over-long and bad rows."""
        return {"over_long": self.over_long, "on_bad_row": self.on_bad_row}


class Scales(NamedTuple):
    """The factors by which the summed nats of new and of old rows are multiplied."""

    new: float
    old: float


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together.

    old: which rows are replayed ones, (B,) bool; tensors: the tensors that the form has made of the rows; counts: False
    for a filler that gives each process the same number of passes: it goes through the model and adds nothing to the
    loss.
    """

    rows: Sequence[Any]
    old: Tensor
    tensors: Any
    counts: bool = True


class FormSetup(NamedTuple):
    """The parts from which a form is made.

    objective: its config; function: the registered pure function; pad_id: any token id, since no token attends to
    padding; old_weight: the weight of the mean over replayed rows, if they are not part of one mean with the new rows;
    reference: the model before training, for forms and terms that need it; terms: losses on logits, such as
    `kl_to_base`, which are added if a form has logits.
    """

    objective: Any
    function: Callable[..., Loss]
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    old_weight: float = 1.0
    reference: Reference | None = None
    terms: Sequence[Any] = ()


class Preparation(NamedTuple):
    """The parts that a form may use before the first step.

    new, validation, old: the rows that are known by then; tokens: maximum padded tokens of a micro batch; folder: of
    the run, for results that are worth keeping; fingerprint: of the model from which training starts; reference: that
    model, which can be used at least until the first step; read: the indices of those `old` rows that the run will
    read; seed: of the run.
    """

    model: nn.Module
    new: Sequence[Any]
    validation: Sequence[Any]
    old: Sequence[Any]
    tokens: int
    folder: Path | None
    fingerprint: str
    reference: Reference
    say: Callable[[str], None]
    read: Container[int]
    seed: int


class Form(ABC):
    """One form of training data."""

    mixes: ClassVar[bool] = False
    """Whether replayed rows go through this form, too; otherwise another form learns them as conversations (`sft`)."""
    old_apart: ClassVar[bool] = True
    """Whether another form may learn the replayed rows apart from the new ones (`replay: {loss: kl}`)."""
    takes_terms: ClassVar[bool] = False
    """Whether losses on logits (such as `kl_to_base`) can be added."""
    head: ClassVar[Head] = "causal"
    """The kind of head that the model has."""
    reads: ClassVar[Format] = "auto"
    """The format of rows if their source does not name it; `auto` looks at the keys of each row."""
    unit: ClassVar[str] = "token"
    """What the loss is a mean over, with the name that reports use: token, pair, row."""
    encoder: ClassVar[staticmethod[..., EncodeResult[Any]]]
    """The function of `data/` that encodes records as rows."""
    device: torch.device
    """The device of the model; the trainer sets it."""

    def __init__(self, setup: FormSetup) -> None:
        self.setup = setup
        self.objective: Any = setup.objective
        self.seen: list[Any] = []  # results for validation rows, collected by `remember`

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        """Return whether this objective needs the reference model in every step; for some this depends on settings."""
        return False

    @classmethod
    def needs_rows(cls, objective: Any) -> bool:
        """Return whether `prepare` must see every row, so that no rows can be made while the model trains."""
        return False

    @classmethod
    def resolved(cls, objective: Any, records: Callable[[], Sequence[Record]]) -> Config:
        """Return the objective with the settings filled in that follow from the new rows, such as the names of labels.
        It is called for forms with a head, before the model is loaded. records: a function that reads the rows.
        """
        return objective

    @classmethod
    def outputs(cls, objective: Any) -> tuple[str, ...]:
        """Return the names of a head's outputs. objective: a resolved one."""
        return ("score",)

    @classmethod
    def head_settings(cls, objective: Any) -> dict[str, Any]:
        """Return the settings of training that a model with this head needs when it is used."""
        return {}

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[Any]:
        """Encode records as rows. The settings say what to do with over-long and bad ones. Raise DataError, naming
        every such row, for rows of another format.
        """
        return cls.encoder(records, tokenizer, Limits(settings.max_length, **settings.bad_rows))

    @classmethod
    def replay_problem(cls, objective: Any) -> Problem | None:
        """Return the problem if replayed rows cannot be combined with this objective, else None."""
        return None

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Any]:
        """Make records to learn from out of a change's targets (question and new answer).

        present: a function that returns the untouched model's present answers to the targets. Raise ConfigError if the
        form cannot learn from answers.
        """
        cause = "a change's targets are questions and answers, which it does not learn"
        raise ConfigError(Problem("objective", cause, "give data"))

    @staticmethod
    def tokens_of(row: Any) -> int:
        """Return the number of tokens that the model reads for a row, without padding."""
        return len(row.input_ids)

    def size(self, row: Any) -> int:
        """Return how many tokens of a batch's budget a row uses; at least `tokens_of`."""
        return self.tokens_of(row)

    def units(self, row: Any) -> int:
        """Return how much the row adds to the number by which a step's loss is divided."""
        return 1

    @abstractmethod
    def numbers(self, row: Any) -> list[int]:
        """Return everything in a row that affects its loss, as integers, for fingerprints."""

    def before_training(self) -> AbstractContextManager[nn.Module]:
        """Give the model before training, in evaluation mode and without gradients, during the block."""
        assert self.setup.reference is not None, "a form that asks it in training must say so"
        return self.setup.reference.model()

    @property
    def pad_id(self) -> int:
        """Return the tokenizer's padding id, by which some models find the last real token; else any token id."""
        pad = self.setup.tokenizer.pad_token_id
        return self.setup.pad_id if pad is None else int(pad)

    def micro_batch(self, rows: Sequence[Any], old: Sequence[bool]) -> MicroBatch:
        """Make a micro batch of rows. old: which of them are replayed ones."""
        return MicroBatch(rows, torch.tensor(old), self.tensors(rows))

    @abstractmethod
    def tensors(self, rows: Sequence[Any]) -> Any:
        """Make tensors of the rows of a micro batch."""

    @abstractmethod
    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        """Run the forward pass and the objective. The tensors of the result are on the model's device."""

    def scales(self, new_units: int, old_units: int) -> Scales:
        """Return the factors of new and of old rows. If the form mixes rows, there is one mean over all units; else
        there are two means, and the old one is weighted.
        """
        if self.mixes:
            one = 1.0 / max(new_units + old_units, 1)
            return Scales(one, one)
        return Scales(1.0 / max(new_units, 1), self.setup.old_weight / max(old_units, 1))

    def check(self, *, deepspeed: bool, sharded: bool) -> None:  # noqa: B027  # most forms work in all settings
        """Raise ConfigError if this form cannot train in shards. sharded: whether FSDP cuts the parameters."""

    def prepare(self, preparation: Preparation) -> None:  # noqa: B027  # most forms need nothing
        """Compute what steps need, such as reference log-probabilities. It is called once, before the first step, with
        the model in evaluation mode.
        """

    def begin_step(self, model: nn.Module, micro_batches: Sequence[MicroBatch], number: int) -> None:  # noqa: B027
        """Compute what depends on all rows of a step, before its first micro batch. number: how many steps were done
        before; -1 if the rows are those of a validation.
        """

    def end_step(self, model: nn.Module) -> None:  # noqa: B027
        """Update what depends on the weights, after the optimiser has changed them."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs in addition to those that `prepare` computes again."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore the tensors of `state`."""

    def remember(self, found: Iterable[Any], micro: MicroBatch) -> None:
        """Keep results for validation rows until all rows have been read."""
        if micro.counts:
            self.seen += found

    def all_seen(self) -> list[Any]:
        """Return the results of all processes, and clear them."""
        everything: list[Any] = gather_object(self.seen)
        self.seen = []
        return everything

    def validated(self) -> dict[str, float]:
        """Return scores over all validation rows that are not a mean over rows, such as F1. It is called after the last
        validation row.
        """
        return {}
