"""Preference pairs: the form of `dpo` and `orpo`. Both answers go through the model together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.answers import PairRow, encode_pairs
from posttrain.data.lengths import EncodeResult, Limits
from posttrain.data.preferences import FromTargets, pairs_from_targets
from posttrain.data.readers import Format
from posttrain.data.records import Conversation, Preference, Record
from posttrain.objectives._loss import Loss, Pairs
from posttrain.objectives.dpo import DpoConfig
from posttrain.training.forms.answers import answer_logps, reference_logps, without_dropout
from posttrain.training.forms.base import EncodeSettings, Form, FormSetup, MicroBatch, Preparation
from posttrain.training.forms.tokens import TokenBatch, token_batch

__all__ = ["PairBatch", "Paired", "PairsForm"]


@dataclass(frozen=True)
class PairBatch(MicroBatch):
    """both: the 2B sequences of B pairs, chosen ones first."""

    both: TokenBatch


class Paired(Form):
    """Rows of two answers to one prompt."""

    mixes: ClassVar[bool] = False
    unit: ClassVar[str] = "pair"
    reads: ClassVar[Format] = "preference"

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[PairRow]:
        """Render preferences with the chat template."""
        return encode_pairs(records, tokenizer, Limits(settings.max_length, **settings.bad_rows))

    @staticmethod
    def tokens_of(row: PairRow) -> int:
        return len(row.chosen.input_ids) + len(row.rejected.input_ids)

    def size(self, row: PairRow) -> int:
        """Both answers are as wide as the longer one."""
        return 2 * max(len(row.chosen.input_ids), len(row.rejected.input_ids))

    def units(self, row: PairRow) -> int:
        return 1

    def numbers(self, row: PairRow) -> list[int]:
        sides = [n for side in (row.chosen, row.rejected) for n in (len(side.input_ids), *side.input_ids, *side.labels)]
        return [*sides, round(row.margin * 1e6)]


class PairsForm(Paired):
    """Two answers per row, each with its log-probability."""

    def __init__(self, setup: FormSetup) -> None:
        super().__init__(setup)
        self.compares: bool = setup.objective.compares
        self.before: dict[PairRow, tuple[float, float]] = {}

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        return isinstance(objective, DpoConfig) and objective.reference == "adapter"

    @classmethod
    def needs_rows(cls, objective: Any) -> bool:
        return bool(objective.compares) and not cls.asks_reference(objective)

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Preference]:
        """Learn to prefer the wanted answers to the present ones."""
        return pairs_from_targets(targets, present())

    def micro_batch(self, rows: Sequence[PairRow], old: Sequence[bool]) -> PairBatch:
        sequences = [*(row.chosen for row in rows), *(row.rejected for row in rows)]
        both = token_batch(sequences, pad_id=self.setup.pad_id)
        return PairBatch(rows, torch.zeros(len(rows), dtype=torch.bool), both=both)

    def prepare(self, preparation: Preparation) -> None:
        """Ask the model before training about every answer, unless it is asked in each step."""
        without_dropout(preparation.model, preparation.say)
        if not self.compares or self.asks_reference(self.objective):
            return
        rows: list[PairRow] = [*preparation.new, *preparation.validation]
        sides = [(row.chosen, row.rejected) for row in rows]
        found = reference_logps(sides, preparation, pad_id=self.setup.pad_id, device=self.device)
        self.before = dict(zip(rows, found, strict=True))

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        assert isinstance(micro, PairBatch)
        reference = self._reference(micro) if self.compares else None
        logps, tokens = answer_logps(model, micro.both, self.device)
        policy = Pairs(*logps.chunk(2), *tokens.chunk(2))
        if reference is None:
            return self.setup.function(policy, None)
        chosen, rejected = (one.to(logps) for one in reference)
        return self.setup.function(policy, policy._replace(chosen=chosen, rejected=rejected))

    def _reference(self, micro: PairBatch) -> tuple[Tensor, Tensor]:
        if not self.asks_reference(self.objective):
            known = torch.tensor([self.before[row] for row in micro.rows], dtype=torch.float64)
            return known[:, 0], known[:, 1]
        assert self.setup.reference is not None
        with self.setup.reference.model() as reference:
            chosen, rejected = answer_logps(reference, micro.both, self.device)[0].chunk(2)
        return chosen, rejected
