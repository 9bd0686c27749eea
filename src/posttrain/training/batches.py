"""Turn the rows of steps into tensors: PostTrainer's loader yields one item per optimiser step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.batching import length_batches, pieces
from posttrain.models.disk import write_whole
from posttrain.training.config import BatchConfig, TrainConfig
from posttrain.training.forms.base import Form, MicroBatch, Row
from posttrain.training.penalties import Penalties
from posttrain.training.steps import Material, StepRows, StepSource

__all__ = ["Forms", "Learner", "Step", "StepLoader", "part_of", "validation_batches"]

STATE = "form.safetensors"
"""File in a checkpoint: the state of the form of new rows."""
SOURCE = "source.json"
"""File in a checkpoint: the state of the source of steps."""


@dataclass(frozen=True)
class Forms:
    """The forms that read new and replayed rows; both are the same form if that form mixes them."""

    new: Form
    old: Form

    def of(self, micro: MicroBatch) -> Form:
        """Return the form that made a micro batch."""
        return self.old if self.old is not self.new and bool(micro.old.all()) else self.new

    @property
    def mixed(self) -> bool:
        """Return whether new and old rows share micro batches."""
        return self.new is self.old

    def save_state(self, folder: Path) -> None:
        """Write the state of the form of new rows into a checkpoint folder."""
        state = self.new.state()
        if state:
            save_file({k: t.detach().cpu().contiguous() for k, t in state.items()}, folder / STATE)

    def load_state(self, folder: Path) -> None:
        """Read the state of the form of new rows from a checkpoint folder, if it is there."""
        if (folder / STATE).is_file():
            self.new.load_state(load_file(folder / STATE))


class Learner(NamedTuple):
    """The parts that take part in training. A source of steps may use them: it may generate answers with the tuned
    model before it gives a step, and it may use the rows that were read before the first step.
    """

    config: TrainConfig
    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    forms: Forms
    material: Material
    penalties: Penalties


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    micro_batches: the micro batches of this process; new_units, old_units: number of units in new and in replayed rows,
    summed over all processes; tokens: tokens read, without padding, over all processes; old_tokens: those of them in
    replayed rows; epoch: number of passes over the new rows completed after this step, as a fraction.
    """

    micro_batches: list[MicroBatch]
    new_units: int
    old_units: int
    tokens: int
    old_tokens: int
    epoch: float


def part_of(micro_batches: list[MicroBatch], rank: int, processes: int) -> list[MicroBatch]:
    """Return the micro batches of one process: every n-th one, where n is the number of processes.

    All processes must run the same number of forward passes, or the others wait forever. A process that has fewer micro
    batches repeats the first one of the step, which then does not count.
    """
    part = micro_batches[rank::processes]
    if len(part) < -(-len(micro_batches) // processes):
        part = [*part, replace(micro_batches[0], counts=False)]
    return part


@dataclass
class StepLoader:
    """Iterate over the steps of a source as tensors, from the source's current step on.

    At most `left()` steps are made (None: all). transformers.Trainer sees one epoch, and each batch of it is one
    optimiser step. `left` is called when the iteration starts, since the Trainer reads its state only then; `ended` is
    called when the iteration has no more steps. With several processes each takes its part. at_once: maximum number of
    padded tokens that go through the model together; None for whole micro batches. The loss of a step does not depend
    on how it is cut.
    """

    source: StepSource
    steps: int
    forms: Forms
    left: Callable[[], int | None] = lambda: None
    ended: Callable[[], None] = lambda: None
    at_once: int | None = None
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        yield from map(self.make, itertools.islice(self.source, self.left()))
        self.ended()

    def save_state(self, folder: Path) -> None:
        """Write the state of the source into a checkpoint folder."""
        state = self.source.state()
        if state:
            write_whole(folder / SOURCE, json.dumps(state) + "\n")

    def load_state(self, folder: Path, steps: int) -> None:
        """Restore the source from a checkpoint that was written after `steps` steps."""
        path = folder / SOURCE
        self.source.restore(steps, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})

    def make(self, planned: StepRows) -> Step:
        """Make the tensors of this process's part of a step."""
        forms = self.forms.new, self.forms.old
        units, tokens = [0, 0], [0, 0]  # of new and of old rows
        micro_batches = []
        for drawn in planned.micro_batches:
            for row, old in drawn:
                units[old] += forms[old].units(row)
                tokens[old] += forms[old].tokens_of(row)
            for numbers in _parts(range(len(drawn)), [forms[old].size(row) for row, old in drawn], self.at_once):
                rows, olds = [drawn[i].row for i in numbers], [drawn[i].old for i in numbers]
                micro_batches.append(forms[all(olds)].micro_batch(rows, olds))
        part = part_of(micro_batches, self.rank, self.processes)
        return Step(part, units[False], units[True], sum(tokens), tokens[True], planned.epoch)


def _parts(batch: Sequence[int], sizes: Sequence[int], at_once: int | None) -> Sequence[Sequence[int]]:
    """Return the rows of a batch in parts that each go through the model together."""
    return [batch] if at_once is None else pieces(batch, sizes, at_once)


def validation_batches(
    batch: BatchConfig, rows: Sequence[Row], form: Form, at_once: int | None = None
) -> list[MicroBatch]:
    """Return the validation rows in micro batches, which are the same at every call."""
    sizes = [form.size(row) for row in rows]
    batches = length_batches(sizes, tokens=batch.tokens, seed=0, epoch=0, max_rows=batch.rows)
    parts = [part for one in batches for part in _parts(one, sizes, at_once)]
    return [form.micro_batch([rows[i] for i in part], [False] * len(part)) for part in parts]
