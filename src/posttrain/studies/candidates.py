"""What a method offers to be examined, and what it is told of its cell.

A method of a study is a typed generator::

    @register("method", "edit", config=EditConfig)
    def edit(config: EditConfig, cell: CellContext) -> Iterator[Candidate]: ...

It yields candidates, each at a point between before and after. The engine (`cell.py`) examines each one before it asks
for the next, passes over points that were examined already, and keeps or drops products. An error in an exam is raised
in the method where it yielded, so that the method can save what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from posttrain.config.change import Change
from posttrain.studies.config import Saves, StageConfig, safe_name

if TYPE_CHECKING:
    from posttrain.inference.protocol import Respondent
    from posttrain.models.load import LoadedModel
    from posttrain.studies.bench import Bench

__all__ = ["END", "Candidate", "CellContext", "Point", "handed_over"]

T = TypeVar("T")


class Point(NamedTuple):
    """What lies between before and after.

    kind: `step` (of an optimiser), `stage`, `blend` (between the weights before and after), `changes` (so many of a
    sequence), `after` (a step of a chain), `edits`, `input`, `end`; value: which one; within: the step of a chain that
    it is a point of.
    """

    kind: str
    value: int | float | str | None = None
    within: str = ""

    @property
    def name(self) -> str:
        """As in results.json (`checkpoint`) and in folder names: `step-500`, `stage-gloss`, `blend-0.30`, `final`."""
        shown = f"{self.value:.2f}" if isinstance(self.value, float) else safe_name(str(self.value))
        own = "final" if self.kind == "end" else f"{self.kind}-{shown}"
        return f"{self.within}.{own}" if self.within else own


END = Point("end")


@dataclass(frozen=True)
class Candidate:
    """A model, or any respondent, at a point.

    respondent: takes the exams; None where there is nobody to ask (the point was examined before, or the end is put
    together from stages that each have a model of their own); step: optimiser steps so far; cost: of the whole way up
    to here: train_s, steps, tokens, peak_gib, ... as far as the method knows; product: what it left on disk; notes:
    lines for the cell's card; scratch: folders that nobody needs once the cell is done; changes: how many of the cell's
    changes it has been taught, None for all.
    """

    point: Point
    respondent: Respondent | None
    step: int | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    product: Path | None = None
    notes: Sequence[str] = ()
    scratch: Sequence[Path] = ()
    changes: int | None = None


@dataclass(frozen=True)
class CellContext:
    """One cell's surroundings.

    changes: what shall be different, empty in a study without changes; sequence: they come one after another, and a
    candidate is wanted after every so many; None where all are taught at once;
    bench: the model that the method starts from, loaded and untouched; untouched: the study's own model, which is
    another one where the method starts from a product; inputs: the models that the method takes beside it, by the name
    of the input, loaded when called;
    folder: the cell's, or of a step of a chain; keep: which products stay on disk; resumable: whether training is long
    or precious enough to be written down, so that a kill does not lose it; saves: the steps after which training is
    examined; examined: whether a point was, by this or an earlier run; select: the scores of a respondent on the exams
    whose role is to choose a setting; stages: what is to be learned one after another;
    report_to: trackers of its trainings, which write to the cell's folder; on_step: told each training step;
    steps_before, part: of a step of a chain, the optimiser steps of those before it, and its name.
    """

    changes: tuple[Change, ...]
    seed: int
    folder: Path
    bench: Bench
    untouched: Bench
    sequence: int | None = None
    inputs: Mapping[str, Callable[[], LoadedModel]] = field(default_factory=dict)
    keep: Literal["none", "final", "all"] = "none"
    resumable: bool = False
    saves: Saves = field(default_factory=Saves)
    examined: Callable[[Point], bool] = field(default=lambda point: False)
    select: Callable[[Respondent], Mapping[str, float]] = field(default=lambda respondent: {})
    stages: tuple[StageConfig, ...] = ()
    report_to: tuple[str, ...] = ()
    on_step: Callable[[Mapping[str, Any]], None] = field(default=lambda _: None)
    steps_before: int = 0
    part: str = ""
    home: Path | None = None
    """The cell's folder, in the surroundings of a step of a chain."""

    @property
    def metrics(self) -> Path:
        """The file that gets a line per training step of the cell, as they happen."""
        return (self.home or self.folder) / "metrics.jsonl"

    def name(self, point: Point = END) -> str:
        """What a respondent of this cell is called, in sheets for marking and in files of answers."""
        return f"{self.folder.name}--{point.name}"

    def within(self, name: str, **changed: Any) -> CellContext:
        """The surroundings of a step of a chain: a folder of its own, and points of its own."""
        examined = self.examined
        folder = self.folder / "steps" / name
        return replace(
            self,
            folder=folder,
            part=name,
            home=self.home or self.folder,
            examined=lambda point: examined(point._replace(within=name)),
            **changed,
        )


def handed_over(work: Callable[[Callable[[Candidate], None]], T]) -> Generator[Candidate, None, T]:
    """Run what takes a callback as a generator: each candidate that `work` gives to its argument is yielded, and `work`
    goes on when the next one is asked for. Returns what `work` returns; an error raised where the candidate was yielded
    is raised in `work` where it gave it.

    A trainer calls back from the middle of its loop, and a loop cannot be asked for its next checkpoint. Both run in
    one thread and one after the other (`greenlet` switches between two stacks), so that signals, random numbers and
    gradients are as in a plain call.
    """
    from greenlet import getcurrent, greenlet

    def give(candidate: Candidate) -> None:
        parent = worker.parent
        assert parent is not None
        parent.switch(candidate)

    worker = greenlet(lambda: work(give))
    worker.gr_context = copy_context()
    given = worker.switch()
    while not worker.dead:
        try:
            yield given
        except BaseException as error:
            worker.parent = getcurrent()
            given = worker.throw(error)
        else:
            worker.parent = getcurrent()
            given = worker.switch()
    result: T = given
    return result
