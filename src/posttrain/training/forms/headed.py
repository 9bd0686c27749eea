"""Shared by the forms of models with a head: padding with the model's own token, labels from the rows, no replay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from posttrain.config.base import Config
from posttrain.data.head_rows import HeadSettings, Padded, SpanRow, TagRow, TextRow, pad
from posttrain.data.records import Record
from posttrain.errors import DataError, Problem
from posttrain.objectives._loss import balanced
from posttrain.training.forms.base import EncodeSettings, Form, FormSetup, MicroBatch

__all__ = ["HeadBatch", "HeadForm", "LabelledForm"]

KNOWN = 100
"""More labels than this are hardly classes but, for instance, texts in the wrong column."""


@dataclass(frozen=True)
class HeadBatch(MicroBatch):
    """padded: the tensors of the rows."""

    padded: Padded


class HeadForm(Form):
    """One sequence per row, with its padding masked: encoders read in both directions."""

    mixes: ClassVar[bool] = False

    def __init__(self, setup: FormSetup) -> None:
        super().__init__(setup)
        self.seen: list[Any] = []  # what `remember` was told of validation rows

    @staticmethod
    def tokens_of(row: TextRow | TagRow | SpanRow) -> int:
        return len(row.input_ids)

    def units(self, row: Any) -> int:
        return 1

    def micro_batch(self, rows: Sequence[Any], old: Sequence[bool]) -> HeadBatch:
        pad_id = self.setup.tokenizer.pad_token_id  # the model's own: decoders find the last real token by it
        padded = pad(rows, self.setup.pad_id if pad_id is None else int(pad_id))
        return HeadBatch(rows, torch.zeros(len(rows), dtype=torch.bool), padded=padded)

    def remember(self, found: Sequence[Any], model: nn.Module, micro: MicroBatch) -> None:
        """Keep findings about validation rows until all rows have been seen."""
        if not model.training and micro.counts:
            self.seen += found

    def all_seen(self) -> list[Any]:
        """Give the findings of all processes, and forget them."""
        everything: list[Any] = gather_object(self.seen)
        self.seen = []
        return everything

    @staticmethod
    def lifted(logits: Tensor) -> Tensor:
        """Raise logits to float32 where they are coarser."""
        return logits if logits.dtype == torch.float64 else logits.float()


class LabelledForm(HeadForm):
    """Rows with labels from a set."""

    @classmethod
    @abstractmethod
    def labels_in(cls, records: Sequence[Record]) -> list[str]:
        """List the label of every example."""

    @classmethod
    def resolved(cls, objective: Any, records: Callable[[], Sequence[Record]]) -> Config:
        """Fill in the labels, sorted, where they are not given, and the weights of the classes as numbers."""
        needs_rows = objective.labels is None or objective.class_weights == "balanced"
        seen = cls.labels_in(records()) if needs_rows else []
        labels = objective.labels
        if labels is None:
            labels = tuple(sorted(set(seen)))
            if not labels:
                raise DataError(
                    Problem("data", "no row has a label", "give labelled rows, or name them: labels: [...]")
                )
            if len(labels) < cls.least(objective):
                cause = f"every row has the label '{labels[0]}': there is nothing to tell apart"
                raise DataError(Problem("data", cause, "add rows of other classes, or name all: labels: [...]"))
            if len(labels) > KNOWN:
                cause = f"{len(labels)} different labels, such as '{labels[0]}'"
                raise DataError(Problem("data", cause, "name the labels that are meant: labels: [...]"))
        weights = objective.class_weights
        if weights == "balanced":
            weights = balanced(labels, [label for label in seen if label in set(labels)])
        given = {**objective.model_dump(), "labels": labels, "class_weights": weights}
        return type(objective).model_validate(given)

    @staticmethod
    def least(objective: Any) -> int:
        """The smallest number of labels."""
        return 2

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the head's outputs."""
        return self.outputs(self.objective)

    @classmethod
    def outputs(cls, objective: Any) -> tuple[str, ...]:
        labels: tuple[str, ...] = objective.labels
        return labels

    @staticmethod
    def settings_of(settings: EncodeSettings, **more: Any) -> HeadSettings:
        """The settings for reading rows; more: those of a single form."""
        labels = settings.objective.labels
        assert labels is not None, "labels are resolved before rows are read"
        return HeadSettings(labels, settings.max_length, **settings.bad_rows, **more)
