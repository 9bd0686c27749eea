"""Tagged sentences: the form of `token_classification`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.head_rows import TagRow, encode_tags, tag_targets
from posttrain.data.lengths import EncodeResult
from posttrain.data.metrics.labelled import scores_of_tags
from posttrain.data.readers import Format
from posttrain.data.records import Record, TaggedTokens
from posttrain.inference.heads import said_tags
from posttrain.models.adapters import virtual_columns
from posttrain.models.notes import Head
from posttrain.objectives._loss import Loss
from posttrain.training.forms.base import EncodeSettings, MicroBatch
from posttrain.training.forms.headed import HeadBatch, LabelledForm

__all__ = ["TagsForm"]


class TagsForm(LabelledForm):
    """One sentence per row."""

    head: ClassVar[Head] = "token"
    reads: ClassVar[Format] = "tags"

    @classmethod
    def labels_in(cls, records: Sequence[Record]) -> list[str]:
        return [tag for record in records if isinstance(record, TaggedTokens) for tag in record.tags]

    @classmethod
    def head_settings(cls, objective: Any) -> dict[str, Any]:
        return {"piece": objective.piece}

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[TagRow]:
        """Encode token by token, as the tokenizer begins and ends texts."""
        return encode_tags(records, tokenizer, cls.settings_of(settings, piece=settings.objective.piece or "first"))

    def units(self, row: TagRow) -> int:
        return sum(position >= 0 for position in row.first)

    def numbers(self, row: TagRow) -> list[int]:
        return [len(row.input_ids), *row.input_ids, *(row.types or ()), len(row.first), *row.first, *row.tags]

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        assert isinstance(micro, HeadBatch)
        logits = self.lifted(model(**micro.padded.inputs(self.device)).logits)[:, virtual_columns(model) :]
        if not model.training:
            said = [said_tags(one, row, self.labels).tags for one, row in zip(logits.detach(), micro.rows, strict=True)]
            gold = [tuple(self.labels[i] for i in row.tags) for row in micro.rows]
            self.remember(list(zip(said, gold, strict=True)), model, micro)
        return self.setup.function(logits, tag_targets(micro.rows, logits.shape[1]).to(logits.device))

    def validated(self) -> dict[str, float]:
        """Scores over all validation sentences."""
        seen = self.all_seen()
        return scores_of_tags([said for said, _ in seen], [gold for _, gold in seen], self.labels)
