"""Planned steps as tensors: what PostTrainer's loader yields, one item per optimiser step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from posttrain.data.batching import pieces
from posttrain.training.forms.base import Form, MicroBatch
from posttrain.training.steps import PlannedStep, RowPlan

__all__ = ["Forms", "Step", "StepLoader", "part_of"]

STATE = "form.safetensors"
"""In a checkpoint: what a form needs to go on."""


@dataclass(frozen=True)
class Forms:
    """How new and replayed rows are read: one form for both where it mixes them."""

    new: Form
    old: Form

    def of(self, micro: MicroBatch) -> Form:
        """The form that made a micro batch."""
        return self.old if self.old is not self.new and bool(micro.old.all()) else self.new

    @property
    def mixed(self) -> bool:
        """Whether new and old rows share micro batches."""
        return self.new is self.old

    def save_state(self, folder: Path) -> None:
        """Into a checkpoint."""
        state = self.new.state()
        if state:
            save_file({k: t.detach().cpu().contiguous() for k, t in state.items()}, folder / STATE)

    def load_state(self, folder: Path) -> None:
        """Out of a checkpoint."""
        if (folder / STATE).is_file():
            self.new.load_state(load_file(folder / STATE))


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    micro_batches: those of this process; new_units, old_units: what the losses of new and of replayed rows are means
    over, in all processes; tokens, old_tokens: tokens read, padding left out, and those of replayed rows, in all
    processes; epoch: passes over the new rows once the step is done.
    """

    micro_batches: list[MicroBatch]
    new_units: int
    old_units: int
    tokens: int
    old_tokens: int
    epoch: float


def part_of(micro_batches: list[MicroBatch], rank: int, processes: int) -> list[MicroBatch]:
    """Every n-th micro batch. All processes must go through the model equally often, or the others wait for ever: one
    that has less repeats the first, which then adds nothing."""
    part = micro_batches[rank::processes]
    if len(part) < -(-len(micro_batches) // processes):
        part = [*part, replace(micro_batches[0], counts=False)]
    return part


class StepLoader:
    """Iterates over the steps of a run from `first()` on; its length is that of the whole run.

    transformers.Trainer sees one epoch whose batches are optimiser steps. Where a resumed run begins is asked when
    iteration starts, since the Trainer reads its state only then. With several processes each takes its part.
    at_once: padded tokens that go through the model together, at most; None for whole micro batches. A step's loss does
    not depend on how it is cut.
    """

    def __init__(
        self,
        plan: RowPlan,
        rows: Sequence[Any],
        steps: int,
        *,
        forms: Forms,
        first: Callable[[], int],
        at_once: int | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.plan = plan
        self.rows = rows
        self.steps = steps
        self.forms = forms
        self.first = first
        self.at_once = at_once
        self.rank = rank
        self.processes = processes
        by_form = [(forms.new if i < plan.new_rows else forms.old, row) for i, row in enumerate(rows)]
        # known for every row, so that each process knows the sums over all of them
        self.units = [form.units(row) for form, row in by_form]
        self.tokens = [form.tokens_of(row) for form, row in by_form]
        self.sizes = [form.size(row) for form, row in by_form]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        return map(self.make, itertools.islice(self.plan, self.first(), self.steps))

    def make(self, planned: PlannedStep) -> Step:
        """The tensors of this process's part of a step."""
        numbers = [i for micro in planned.micro_batches for i in micro]
        old = [i for i in numbers if i >= self.plan.new_rows]
        old_units = sum(self.units[i] for i in old)
        return Step(
            part_of([self._micro(part) for part in self._parts(planned)], self.rank, self.processes),
            sum(self.units[i] for i in numbers) - old_units,
            old_units,
            sum(self.tokens[i] for i in numbers),
            sum(self.tokens[i] for i in old),
            planned.epoch,
        )

    def _parts(self, planned: PlannedStep) -> list[list[int]]:
        """Row numbers of what goes through the model together."""
        if self.at_once is None:
            return planned.micro_batches
        return [part for micro in planned.micro_batches for part in pieces(micro, self.sizes, self.at_once)]

    def _micro(self, numbers: list[int]) -> MicroBatch:
        old = [i >= self.plan.new_rows for i in numbers]
        form = self.forms.old if all(old) else self.forms.new
        return form.micro_batch([self.rows[i] for i in numbers], numbers, old)
