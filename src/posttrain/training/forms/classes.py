"""Labelled texts: the form of `text_classification`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.head_rows import TextRow, encode_texts
from posttrain.data.lengths import EncodeResult
from posttrain.data.metrics.labelled import scores_of_classes
from posttrain.data.readers import Format
from posttrain.data.records import LabelledText, Record
from posttrain.inference.heads import said_labels
from posttrain.models.notes import Head
from posttrain.objectives._loss import Loss
from posttrain.training.forms.base import EncodeSettings, MicroBatch
from posttrain.training.forms.headed import HeadBatch, LabelledForm

__all__ = ["ClassesForm"]


class ClassesForm(LabelledForm):
    """One text, or a pair, per row."""

    head: ClassVar[Head] = "sequence"
    unit: ClassVar[str] = "text"
    reads: ClassVar[Format] = "labels"

    @classmethod
    def labels_in(cls, records: Sequence[Record]) -> list[str]:
        return [label for record in records if isinstance(record, LabelledText) for label in record.labels]

    @staticmethod
    def least(objective: Any) -> int:
        """One label is enough where each is a question of its own."""
        return 1 if objective.multi_label else 2

    @classmethod
    def head_settings(cls, objective: Any) -> dict[str, Any]:
        return {"multi_label": objective.multi_label, "threshold": objective.threshold}

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[TextRow]:
        """Encode texts as the tokenizer begins and ends them; no chat template."""
        return encode_texts(records, tokenizer, cls.settings_of(settings, multi_label=settings.objective.multi_label))

    def numbers(self, row: TextRow) -> list[int]:
        return [len(row.input_ids), *row.input_ids, *(row.types or ()), len(row.labels), *row.labels]

    def targets(self, rows: Sequence[TextRow]) -> Tensor:
        """The classes (B,), or 0 and 1 for each class (B, C)."""
        if not self.objective.multi_label:
            return torch.tensor([row.labels[0] for row in rows])
        targets = torch.zeros(len(rows), len(self.labels), dtype=torch.long)
        for i, row in enumerate(rows):
            targets[i, list(row.labels)] = 1
        return targets

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        assert isinstance(micro, HeadBatch)
        logits = self.lifted(model(**micro.padded.inputs(self.device)).logits)
        if not model.training:
            said = said_labels(logits.detach(), self.labels, **self.head_settings(self.objective))
            gold = [tuple(self.labels[i] for i in row.labels) for row in micro.rows]
            self.remember([(one.labels, right) for one, right in zip(said, gold, strict=True)], model, micro)
        return self.setup.function(logits, self.targets(micro.rows).to(logits.device))

    def validated(self) -> dict[str, float]:
        """Scores over all validation texts."""
        seen, several = self.all_seen(), self.objective.multi_label
        said, gold = [one for one, _ in seen], [one for _, one in seen]
        return scores_of_classes(said, gold, self.labels, multi_label=several)
