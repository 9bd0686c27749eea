"""Where the rows of each optimiser step come from.

A `StepSource` gives one step after another. `FixedRows` reads rows that are known before the first step, in the order
of a `RowPlan`; another source may make its rows while the model trains, from what the model says, and need not know how
many steps there will be.
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
    """The encoded rows of a run: to learn, to measure the loss on, and old ones to mix in."""

    new: list[Any]
    validation: list[Any]
    old: list[Any]


class Drawn(NamedTuple):
    """An encoded row, as the objective's form has them, and whether it is a replayed one."""

    row: Any
    old: bool = False


class StepRows(NamedTuple):
    """The rows of one optimiser step, micro batch by micro batch: `Drawn`, or their numbers in a `RowPlan`.

    epoch: passes over the new rows that are complete after this step, as a fraction; 0 where there are no passes.
    """

    micro_batches: list[list[Any]]
    epoch: float = 0.0


class StepSource(Protocol):
    """Gives the steps of a training. In a distributed run the source of every process must give the same rows."""

    @property
    def total(self) -> int | None:
        """The number of steps from the first to the last; None where it is not known beforehand."""

    def __iter__(self) -> Iterator[StepRows]:
        """The steps that are left. The next one is asked for after the optimiser has made the step before, so that it
        may be made by the model as it is then. The training ends with the iteration.
        """

    def state(self) -> Mapping[str, Any]:
        """The state after the step that was given last, for `restore`: a JSON object, empty where the number of steps
        is enough. It is written into every checkpoint."""

    def restore(self, steps: int, state: Mapping[str, Any]) -> None:
        """Go on after `steps` steps, when the state was `state`."""


@dataclass
class RowPlan:
    """Endless optimiser steps over new rows, with old rows mixed in when there are some.

    It is arithmetic on the lengths of rows, so the order of the rows is a function of the seed alone: a resumed run
    finds its position by counting, and a dry run knows what is to come.

    new_lengths, old_lengths: the tokens that each row takes of a batch's budget; tokens: those that the model reads of
    each row, new and old, where they are fewer (both answers of a pair are as wide as the longer one); share: old
    tokens over all tokens of a step; mixed: whether new and old rows may share a micro batch.
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
        self.new_rows = len(self.new_lengths)  # row numbers from here up are replayed ones

    def _epoch(self, epoch: int) -> list[list[list[int]]]:
        """The steps of one pass over the new rows; each is a list of micro batches."""
        batches = length_batches(
            self.new_lengths, tokens=self.batch.tokens, seed=self.seed, epoch=epoch, max_rows=self.batch.rows
        )
        size = self.batch.accumulate
        return [batches[i : i + size] for i in range(0, len(batches), size)]

    def steps_in(self, epochs: float) -> int:
        """Steps that `epochs` passes take, the last partial pass rounded up."""
        whole = math.floor(epochs)
        steps = sum(len(self._epoch(e)) for e in range(whole))
        return steps + math.ceil((epochs - whole) * len(self._epoch(whole)) if epochs > whole else 0)

    def __iter__(self) -> Iterator[StepRows]:
        """Steps without end, from the first; replayed rows have numbers from `new_rows` up."""
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
                    # where they may mix, the step is cut anew: old and new rows of like length share a micro batch
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
    """The first `total` steps of a plan. rows: new ones, then old ones, numbered as the plan numbers them."""

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
    """After how many steps a training ends at the latest; None where nobody knows. validates: there are validation
    rows. ConfigError for settings that need the number where it is not known.
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
