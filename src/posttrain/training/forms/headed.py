"""The forms of models with a head, for `text_classification`, `token_classification` and `extractive_qa`.

They are padded with the model's own token, labels may come from the rows, and nothing is replayed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.config.base import Config
from posttrain.data.head_rows import (
    HeadSettings,
    Padded,
    SpanRow,
    TagRow,
    TextRow,
    encode_questions,
    encode_tags,
    encode_texts,
    pad,
    tag_targets,
)
from posttrain.data.lengths import EncodeResult
from posttrain.data.metrics.labelled import scores_of_answers, scores_of_classes, scores_of_tags
from posttrain.data.readers import Format
from posttrain.data.records import LabelledText, ReadingQuestion, Record, TaggedTokens
from posttrain.errors import DataError, Problem
from posttrain.inference.heads import best_answer, said_labels, said_tags, window_scores
from posttrain.models.adapters import virtual_columns
from posttrain.models.logits import raised
from posttrain.models.notes import Head
from posttrain.objectives._loss import Loss, balanced
from posttrain.training.forms.base import EncodeSettings, Form, MicroBatch

__all__ = ["ClassesForm", "SpansForm", "TagsForm"]

KNOWN = 100
"""Maximum number of labels found in rows. More are probably not classes but, for instance, texts in a wrong column."""


class HeadForm(Form):
    """A form with one sequence per row and its padding masked, since encoders read in both directions."""

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[Any]:
        """Encode texts with the tokenizer's own begin and end tokens, without a chat template."""
        of_head = cls.head_settings(settings.objective).items()
        more = {name: value for name, value in of_head if name in HeadSettings._fields and value is not None}
        labels = cls.outputs(settings.objective)
        return cls.encoder(records, tokenizer, HeadSettings(labels, settings.max_length, **settings.bad_rows, **more))

    @abstractmethod
    def parts(self, row: Any) -> list[int]:
        """Return, as integers, what the row contains in addition to tokens and types."""

    def numbers(self, row: TextRow | TagRow | SpanRow) -> list[int]:
        return [len(row.input_ids), *row.input_ids, *(row.types or ()), *self.parts(row)]

    def tensors(self, rows: Sequence[Any]) -> Padded:
        return pad(rows, self.pad_id)

    def output(self, model: nn.Module, micro: MicroBatch) -> Any:
        """Run the forward pass and return the model's output."""
        return model(**micro.tensors.inputs(self.device))


class LabelledForm(HeadForm):
    """A form for rows with labels from a fixed set."""

    @classmethod
    @abstractmethod
    def labels_in(cls, records: Sequence[Record]) -> list[str]:
        """Return the label of every example, in order."""

    @classmethod
    def resolved(cls, objective: Any, records: Callable[[], Sequence[Record]]) -> Config:
        """Fill in the labels, sorted, and the class weights as numbers, if they are not given. Raise DataError if no
        row has a label, if there is only one class, or if there are more than `KNOWN` labels.
        """
        needs_rows = objective.labels is None or objective.class_weights == "balanced"
        seen = cls.labels_in(records()) if needs_rows else []
        labels = objective.labels
        if labels is None:
            labels = tuple(sorted(set(seen)))
            if not labels:
                mend = "give labelled rows, or name them: labels: [...]"
                raise DataError(Problem("data", "no row has a label", mend))
            # one label is enough if each label is a yes-or-no question of its own
            if len(labels) < 2 and not cls.head_settings(objective).get("multi_label"):
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

    @classmethod
    def outputs(cls, objective: Any) -> tuple[str, ...]:
        return tuple(objective.labels)


class ClassesForm(LabelledForm):
    """A form for classes: one text, or a pair of texts, per row."""

    head: ClassVar[Head] = "sequence"
    unit: ClassVar[str] = "text"
    reads: ClassVar[Format] = "labels"
    encoder = staticmethod(encode_texts)

    @classmethod
    def labels_in(cls, records: Sequence[Record]) -> list[str]:
        return [label for record in records if isinstance(record, LabelledText) for label in record.labels]

    @classmethod
    def head_settings(cls, objective: Any) -> dict[str, Any]:
        return {"multi_label": objective.multi_label, "threshold": objective.threshold}

    def parts(self, row: TextRow) -> list[int]:
        return [len(row.labels), *row.labels]

    def targets(self, rows: Sequence[TextRow]) -> Tensor:
        """Return the class of each row, (B,), or 0 and 1 for each class, (B, C)."""
        if not self.objective.multi_label:
            return torch.tensor([row.labels[0] for row in rows])
        targets = torch.zeros(len(rows), len(self.objective.labels), dtype=torch.long)
        for i, row in enumerate(rows):
            targets[i, list(row.labels)] = 1
        return targets

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        logits = raised(self.output(model, micro).logits)
        if not model.training:
            labels = self.objective.labels
            said = said_labels(logits.detach(), labels, **self.head_settings(self.objective))
            gold = [tuple(labels[i] for i in row.labels) for row in micro.rows]
            self.remember(zip([one.labels for one in said], gold, strict=True), micro)
        return self.setup.function(logits, self.targets(micro.rows).to(logits.device))

    def validated(self) -> dict[str, float]:
        """Return scores over all validation texts."""
        said, gold = zip(*self.all_seen(), strict=True)
        return scores_of_classes(said, gold, self.objective.labels, multi_label=self.objective.multi_label)


class TagsForm(LabelledForm):
    """A form for tags: one sentence per row."""

    head: ClassVar[Head] = "token"
    reads: ClassVar[Format] = "tags"
    encoder = staticmethod(encode_tags)

    @classmethod
    def labels_in(cls, records: Sequence[Record]) -> list[str]:
        return [tag for record in records if isinstance(record, TaggedTokens) for tag in record.tags]

    @classmethod
    def head_settings(cls, objective: Any) -> dict[str, Any]:
        return {"piece": objective.piece}

    def units(self, row: TagRow) -> int:
        return sum(position >= 0 for position in row.first)

    def parts(self, row: TagRow) -> list[int]:
        return [len(row.first), *row.first, *row.tags]

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        logits = raised(self.output(model, micro).logits)[:, virtual_columns(model) :]
        if not model.training:
            rows, labels = zip(logits.detach(), micro.rows, strict=True), self.objective.labels
            said = [(said_tags(one, row, labels).tags, tuple(labels[i] for i in row.tags)) for one, row in rows]
            self.remember(said, micro)
        return self.setup.function(logits, tag_targets(micro.rows, logits.shape[1]).to(logits.device))

    def validated(self) -> dict[str, float]:
        """Return scores over all validation sentences."""
        said, gold = zip(*self.all_seen(), strict=True)
        return scores_of_tags(said, gold, self.objective.labels)


class SpansForm(HeadForm):
    """A form for answers in a text: one window of a text per row."""

    head: ClassVar[Head] = "answer"
    unit: ClassVar[str] = "window"
    reads: ClassVar[Format] = "answers"
    encoder = staticmethod(encode_questions)

    @classmethod
    def resolved(cls, objective: Any, records: Callable[[], Sequence[Record]]) -> Config:
        """Fill in whether a question may have no answer, if that is not given."""
        if objective.null_answers is not None:
            return objective
        none = any(isinstance(record, ReadingQuestion) and record.gold and not record.answers for record in records())
        return objective.model_copy(update={"null_answers": none})

    @classmethod
    def outputs(cls, objective: Any) -> tuple[str, ...]:
        return ()

    @classmethod
    def head_settings(cls, objective: Any) -> dict[str, Any]:
        return objective.model_dump(exclude={"kind"})

    def parts(self, row: SpanRow) -> list[int]:
        return [row.start, row.end]

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        out = self.output(model, micro)
        skip = virtual_columns(model)
        start, end = raised(out.start_logits)[:, skip:], raised(out.end_logits)[:, skip:]
        if not model.training:
            rows, most = zip(start.detach(), end.detach(), micro.rows, strict=True), self.objective.max_answer_tokens
            self.remember([(row.record, window_scores(s, e, row, most)) for s, e, row in rows], micro)
        targets = torch.tensor([[row.start, row.end] for row in micro.rows], device=start.device)
        real = micro.tensors.attention_mask.to(start.device).bool()
        return self.setup.function(start, end, targets, real)

    def validated(self) -> dict[str, float]:
        """Return scores over all validation questions, each with all windows of its text."""
        windows: dict[str, list[Any]] = {}
        records: dict[str, ReadingQuestion] = {}
        for record, one in self.all_seen():
            windows.setdefault(record.location, []).append(one)
            records[record.location] = record
        null, threshold = bool(self.objective.null_answers), self.objective.null_threshold
        best = partial(best_answer, null_answers=null, null_threshold=threshold)
        said = [best(found, records[place].context).text for place, found in windows.items()]
        return scores_of_answers(said, [[a.text for a in records[place].answers] for place in windows])
