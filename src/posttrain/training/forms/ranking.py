"""Preference pairs for a model with one score: the form of `reward`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from posttrain.data.answers import PairRow, prompt_length
from posttrain.data.batching import collate
from posttrain.models.logits import core_of
from posttrain.objectives._loss import Loss
from posttrain.training.forms.answers import without_dropout
from posttrain.training.forms.base import FormSetup, Head, MicroBatch, Preparation
from posttrain.training.forms.pairs import Paired

__all__ = ["RankingBatch", "RankingForm", "Scored", "calibration_error", "length_correlation"]

BINS = 10
"""Of the calibration error."""


@dataclass(frozen=True)
class RankingBatch(MicroBatch):
    """input_ids, attention_mask: (2B, T), right-padded, chosen answers first; margins: (B,); lengths: tokens of each
    answer, (2B,)."""

    input_ids: Tensor
    attention_mask: Tensor
    margins: Tensor
    lengths: Tensor


class Scored(NamedTuple):
    """Of a validation pair: scores of the chosen and of the rejected answer, and the tokens of both."""

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int


def length_correlation(pairs: Sequence[Scored]) -> float:
    """Pearson's correlation between an answer's score and its tokens; 0 where one of them does not vary.

    Near 1 the model has learned to like long answers.
    """
    both = torch.tensor(pairs, dtype=torch.float64).T  # (4, N)
    scores, tokens = both[:2].flatten(), both[2:].flatten()
    scores, tokens = scores - scores.mean(), tokens - tokens.mean()
    size = float(scores.norm() * tokens.norm())
    return float(scores @ tokens) / size if size else 0.0


def calibration_error(pairs: Sequence[Scored]) -> float:
    """How far the probability sigmoid(|r_w - r_l|) that the model gives its preference is from how often it is right:
    the mean over ten bins of probability, weighted by pairs.
    """
    margins = torch.tensor([pair.chosen - pair.rejected for pair in pairs], dtype=torch.float64)
    sure = torch.sigmoid(margins.abs())  # from 1/2 to 1
    right = (margins > 0).double()
    bins = ((sure - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    apart = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, sure - right)
    return float(apart.abs().sum()) / max(len(margins), 1)


class RankingForm(Paired):
    """Two answers per row, each with a score."""

    head: ClassVar[Head] = "sequence"

    def __init__(self, setup: FormSetup) -> None:
        super().__init__(setup)
        self.scored: list[Scored] = []

    @property
    def pad_id(self) -> int:
        """The tokenizer's own: models find the last real token by it."""
        pad = self.setup.tokenizer.pad_token_id
        return self.setup.pad_id if pad is None else int(pad)

    def micro_batch(self, rows: Sequence[PairRow], old: Sequence[bool]) -> RankingBatch:
        sequences = [*(row.chosen for row in rows), *(row.rejected for row in rows)]
        batch = collate(sequences, self.pad_id)
        return RankingBatch(
            rows,
            torch.zeros(len(rows), dtype=torch.bool),
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            margins=torch.tensor([row.margin for row in rows]),
            lengths=torch.tensor([len(s.input_ids) - prompt_length(s) for s in sequences]),
        )

    def prepare(self, preparation: Preparation) -> None:
        """Check that the model has one score, and that the last token of a row can be told from padding."""
        without_dropout(preparation.model, preparation.say)
        config = core_of(preparation.model).config
        assert config.num_labels == 1
        ends = {side.input_ids[-1] for row in preparation.new for side in (row.chosen, row.rejected)}
        if config.pad_token_id in ends:
            token = self.setup.tokenizer.convert_ids_to_tokens(config.pad_token_id)
            preparation.say(
                f"answers end with the padding token {token}: the score is read at the token before it, "
                "here and wherever the model is loaded"
            )

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        assert isinstance(micro, RankingBatch)
        # the model's own pooling, so that whoever loads it has these scores
        logits: Tensor = model(
            input_ids=micro.input_ids.to(self.device), attention_mask=micro.attention_mask.to(self.device)
        ).logits
        chosen, rejected = logits[:, 0].float().chunk(2) if logits.dtype != torch.float64 else logits[:, 0].chunk(2)
        if not model.training and micro.counts:
            columns = (chosen, rejected, *micro.lengths.chunk(2))
            self.scored += map(Scored, *(column.tolist() for column in columns))
        return self.setup.function(chosen, rejected, micro.margins.to(chosen))

    def validated(self) -> dict[str, float]:
        """Whether long answers are liked as such, and whether the model is as sure as it may be."""
        pairs: list[Scored] = gather_object(self.scored)
        self.scored = []
        return {"length_correlation": length_correlation(pairs), "calibration_error": calibration_error(pairs)}
