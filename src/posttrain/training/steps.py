"""Define the sources that give the rows of each optimiser step.

A `StepSource` gives one step after another. `FixedRows` reads rows that are known before the first step, in the order
of a `RowPlan`. Another source may make its rows during training from what the model generates, and does not have to
know the number of steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from posttrain.data.batching import OldRows, length_batches
from posttrain.errors import ConfigError, Problem
from posttrain.training.config import BatchConfig, TrainConfig

__all__ = ["Drawn", "FixedRows", "Material", "RowPlan", "StepRows", "StepSource", "total_steps"]


class Material(NamedTuple):
    """The encoded rows of a run: new rows to learn, rows to measure the validation loss on, and old rows for replay."""

    new: list[Any]
    validation: list[Any]
    old: list[Any]


class Drawn(NamedTuple):
    """An encoded row, in the type of the objective's form, and whether it is a replayed one."""

    row: Any
    old: bool = False


class StepRows(NamedTuple):
    """The rows of one optimiser step, as a list of micro batches. Each row is a `Drawn`, or its index in a `RowPlan`.
    epoch: number of passes over the new rows completed after this step, as a fraction; 0 if there are no passes.
    """

    micro_batches: list[list[Any]]
    epoch: float = 0.0


class StepSource(Protocol):
    """A source of the steps of a training. In a distributed run the source of every process must give the same rows."""

    @property
    def total(self) -> int | None:
        """Return the number of steps from the first to the last; None if it is not known in advance."""

    def __iter__(self) -> Iterator[StepRows]:
        """Iterate over the remaining steps. The next step is requested after the optimiser has made the step before,
        so that the present model can make its rows. The training ends when the iteration ends."""

    def state(self) -> Mapping[str, Any]:
        """Return the state after the last given step, for `restore`: a JSON object. It is empty if the number of steps
        is enough to restore. It is written into every checkpoint.
        """

    def restore(self, steps: int, state: Mapping[str, Any]) -> None:
        """Continue after `steps` steps from the state `state`."""


@dataclass
class RowPlan:
    """Endless optimiser steps over new rows, with old rows mixed in if there are any.

    The plan is computed from the lengths of rows, so the order of the rows depends on the seed alone: a resumed run
    finds its position by counting, and a dry run knows the steps in advance.

    new_lengths, old_lengths: tokens that each row uses of a batch's budget; tokens: tokens that the model reads of each
    row, new rows first, if they are fewer (both answers of a pair are padded to the longer one); share: old tokens over
    all tokens of a step; mixed: whether new and old rows may share a micro batch.
    """

    new_lengths: list[int]
    old_lengths: list[int]
    batch: BatchConfig
    share: float = field(kw_only=True)
    seed: int = field(kw_only=True)
    tokens: list[int] = field(default_factory=list, kw_only=True)
    mixed: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        self.tokens = self.tokens or self.new_lengths + self.old_lengths
        self.new_rows = len(self.new_lengths)  # indices of rows from here on are replayed rows

    def _epoch(self, epoch: int) -> list[list[list[int]]]:
        """Return the steps of one pass over the new rows; each step is a list of micro batches."""
        batches = length_batches(
            self.new_lengths, tokens=self.batch.tokens, seed=self.seed, epoch=epoch, max_rows=self.batch.rows
        )
        size = self.batch.accumulate
        return [batches[i : i + size] for i in range(0, len(batches), size)]

    def steps_in(self, epochs: float) -> int:
        """Return the number of steps in `epochs` passes; the last partial pass is rounded up."""
        whole = math.floor(epochs)
        steps = sum(len(self._epoch(e)) for e in range(whole))
        return steps + math.ceil((epochs - whole) * len(self._epoch(whole)) if epochs > whole else 0)

    def __iter__(self) -> Iterator[StepRows]:
        """Give steps from the first, without end. Replayed rows have indices from `new_rows` on."""
        lengths = self.new_lengths + self.old_lengths
        old_rows = OldRows(self.tokens[self.new_rows :], share=self.share, seed=self.seed)
        number = 0
        for epoch in itertools.count():
            steps = self._epoch(epoch)
            for i, micro_batches in enumerate(steps):
                done = epoch + (i + 1) / len(steps)
                new = [row for micro in micro_batches for row in micro]
                old = [self.new_rows + row for row in old_rows.draw(sum(self.tokens[row] for row in new))]
                if old:
                    # if they may mix, cut the step again: old and new rows of similar length share a micro batch
                    rows = new + old if self.mixed else old
                    cut = length_batches(
                        [lengths[row] for row in rows],
                        tokens=self.batch.tokens,
                        seed=self.seed,
                        epoch=number,
                        max_rows=self.batch.rows,
                    )
                    added = [[rows[j] for j in micro] for micro in cut]
                    micro_batches = added if self.mixed else [*micro_batches, *added]
                yield StepRows(micro_batches, done)
                number += 1


class FixedRows:
    """The first `total` steps of a plan. rows: new rows, then old rows, in the order of the plan's indices."""

    def __init__(self, plan: RowPlan, rows: Sequence[Any], total: int) -> None:
        self.plan, self.total, self.done = plan, total, 0
        self.drawn = [Drawn(row, i >= plan.new_rows) for i, row in enumerate(rows)]

    def __iter__(self) -> Iterator[StepRows]:
        for micro_batches, epoch in itertools.islice(self.plan, self.done, self.total):
            yield StepRows([[self.drawn[i] for i in numbers] for numbers in micro_batches], epoch)

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, steps: int, state: Mapping[str, Any]) -> None:
        self.done = steps


def total_steps(config: TrainConfig, source: StepSource, *, validates: bool) -> int | None:
    """Return the maximum number of steps of a training; None if it is not known. validates: whether there are
    validation rows. Raise ConfigError for settings that need the number if it is not known.
    """
    optimizer = config.optimizer
    if optimizer.max_steps is not None or source.total is not None:
        return min(n for n in (optimizer.max_steps, source.total) if n is not None)
    needing = {
        "optimizer.epochs": optimizer.epochs is not None,
        "optimizer.schedule": optimizer.schedule != "constant",
        "optimizer.warmup_share": optimizer.warmup_share > 0,
        "evaluate_every_steps": validates and config.evaluate_every_steps is None,
    }
    cause = "needs the number of steps, which is not known where rows are made while the model trains"
    mends = {"optimizer.warmup_share": ", or warmup_steps", "evaluate_every_steps": ", or evaluate_every_steps"}
    problems = [
        Problem(key, cause, f"give optimizer.max_steps{mends.get(key, '')}") for key, needs in needing.items() if needs
    ]
    if problems:
        raise ConfigError(*problems)
    return None
