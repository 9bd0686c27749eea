"""Questions about texts that hold the answer: the form of `extractive_qa`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.config.base import Config
from posttrain.data.head_rows import HeadSettings, SpanRow, encode_questions
from posttrain.data.lengths import EncodeResult
from posttrain.data.metrics.labelled import scores_of_answers
from posttrain.data.readers import Format
from posttrain.data.records import ReadingQuestion, Record
from posttrain.inference.heads import best_answer, window_scores
from posttrain.models.adapters import virtual_columns
from posttrain.models.notes import Head
from posttrain.objectives._loss import Loss
from posttrain.training.forms.base import EncodeSettings, MicroBatch
from posttrain.training.forms.headed import HeadBatch, HeadForm

__all__ = ["SpansForm"]


class SpansForm(HeadForm):
    """One window of a text per row."""

    head: ClassVar[Head] = "answer"
    unit: ClassVar[str] = "window"
    reads: ClassVar[Format] = "answers"

    @classmethod
    def resolved(cls, objective: Any, records: Callable[[], Sequence[Record]]) -> Config:
        """Fill in whether there may be no answer, where that is not given."""
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

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[SpanRow]:
        """Cut texts into windows of `max_length` tokens, question included."""
        stride = settings.objective.doc_stride
        wanted = HeadSettings((), settings.max_length, doc_stride=stride, **settings.bad_rows)
        return encode_questions(records, tokenizer, wanted)

    def numbers(self, row: SpanRow) -> list[int]:
        return [len(row.input_ids), *row.input_ids, *(row.types or ()), row.start, row.end]

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        assert isinstance(micro, HeadBatch)
        out = model(**micro.padded.inputs(self.device))
        skip = virtual_columns(model)
        start, end = self.lifted(out.start_logits)[:, skip:], self.lifted(out.end_logits)[:, skip:]
        if not model.training:
            found = [
                window_scores(s, e, row, self.objective.max_answer_tokens)
                for s, e, row in zip(start.detach(), end.detach(), micro.rows, strict=True)
            ]
            self.remember([(row.record, one) for row, one in zip(micro.rows, found, strict=True)], model, micro)
        targets = torch.tensor([[row.start, row.end] for row in micro.rows], device=start.device)
        real = micro.padded.attention_mask.to(start.device).bool()
        return self.setup.function(start, end, targets, real)

    def validated(self) -> dict[str, float]:
        """Scores over all validation questions, each with its windows."""
        windows: dict[str, list[Any]] = {}
        records: dict[str, ReadingQuestion] = {}
        for record, one in self.all_seen():
            windows.setdefault(record.location, []).append(one)
            records[record.location] = record
        said = [
            best_answer(
                found,
                records[location].context,
                null_answers=bool(self.objective.null_answers),
                null_threshold=self.objective.null_threshold,
            ).text
            for location, found in windows.items()
        ]
        return scores_of_answers(said, [[a.text for a in records[location].answers] for location in windows])
