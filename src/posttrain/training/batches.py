"""Planned steps as tensors: what PostTrainer's loader yields, one item per optimiser step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.data.batching import collate
from posttrain.data.chat import IGNORED, Encoded
from posttrain.training.steps import PlannedStep, RowPlan

__all__ = ["MicroBatch", "Step", "StepLoader", "make_micro_batch", "part_of"]


class MicroBatch(NamedTuple):
    """Rows that go through the model together, right-padded.

    input_ids: (B, T); targets: (B, T), the token each position should predict, -100 where nothing is asked;
    columns: positions that any row supervises, (K,), or None when that is all of them; row_numbers: for messages and
    for telling new rows from old ones.
    """

    input_ids: Tensor
    targets: Tensor
    columns: Tensor | None
    row_numbers: list[int]


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    micro_batches: those of this process; supervised: tokens in the loss over all processes; tokens, old_tokens:
    tokens read, padding left out, and those of replayed rows, over all processes; epoch: passes over the new rows once
    the step is done.
    """

    micro_batches: list[MicroBatch]
    supervised: int
    tokens: int
    old_tokens: int
    epoch: float


def make_micro_batch(
    rows: Sequence[Encoded], row_numbers: list[int], *, pad_id: int, supervise_all: bool
) -> MicroBatch:
    """Collate, and shift: position t has token t + 1 as its target, so the last token is a target only.

    supervise_all: every token is a target (clm), whatever the labels say.
    """
    batch = collate(rows, pad_id)
    labels = batch["labels"]
    if supervise_all:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    targets = labels[:, 1:]
    asked = (targets != IGNORED).any(0)  # (T,)
    columns = None if bool(asked.all()) else asked.nonzero()[:, 0]
    return MicroBatch(batch["input_ids"][:, :-1], targets, columns, row_numbers)


def part_of(micro_batches: list[MicroBatch], rank: int, processes: int) -> list[MicroBatch]:
    """Every n-th micro batch. All processes must go through the model equally often, or the others wait for ever: one
    that has less repeats the first with nothing supervised."""
    part = micro_batches[rank::processes]
    if len(part) < -(-len(micro_batches) // processes):
        first = micro_batches[0]
        part = [*part, first._replace(targets=torch.full_like(first.targets, IGNORED))]
    return part


class StepLoader:
    """Iterates over the steps of a run from `first()` on; its length is that of the whole run.

    transformers.Trainer sees one epoch whose batches are optimiser steps. Where a resumed run begins is asked when
    iteration starts, since the Trainer reads its state only then. With several processes each takes its part.
    """

    def __init__(
        self,
        plan: RowPlan,
        rows: Sequence[Encoded],
        steps: int,
        *,
        pad_id: int,
        supervise_all: bool,
        first: Callable[[], int],
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.plan = plan
        self.rows = rows
        self.steps = steps
        self.pad_id = pad_id
        self.supervise_all = supervise_all
        self.first = first
        self.rank = rank
        self.processes = processes
        # how many tokens a row adds to the loss, so that each process knows the sum of all
        self.supervised = [
            len(row.input_ids) - 1 if supervise_all else sum(label != IGNORED for label in row.labels[1:])
            for row in rows
        ]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        return map(self.make, itertools.islice(self.plan, self.first(), self.steps))

    def make(self, planned: PlannedStep) -> Step:
        """The tensors of this process's part of a step."""
        numbers = [i for micro in planned.micro_batches for i in micro]
        whole = [self._micro(micro) for micro in planned.micro_batches]
        micro_batches = part_of(whole, self.rank, self.processes)
        return Step(
            micro_batches,
            sum(self.supervised[i] for i in numbers),
            sum(len(self.rows[i].input_ids) for i in numbers),
            sum(len(self.rows[i].input_ids) for i in numbers if i >= self.plan.new_rows),
            planned.epoch,
        )

    def _micro(self, numbers: list[int]) -> MicroBatch:
        rows = [self.rows[i] for i in numbers]
        return make_micro_batch(rows, numbers, pad_id=self.pad_id, supervise_all=self.supervise_all)
