"""Candidates, which a method offers for examination, and the context of a cell, which a method receives.

A method of a study is a typed generator::

    @register("method", "edit", config=EditConfig)
    def edit(config: EditConfig, cell: CellContext) -> Iterator[Candidate]: ...

It yields candidates, each at a point between before and after. The engine (`cell.py`) examines each candidate before it
asks for the next one, skips points that were examined already, and keeps or deletes products. An error in an exam is
raised inside the method, at its `yield`, so that the method can save what it has.
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
    """A point between the model before and the model after.

    kind: `step` (of an optimiser), `stage`, `blend` (between the weights before and after), `strength` (of a steering
    vector), `changes` (a number of changes of a sequence), `after` (a step of a chain), `edits`, `input`, `end`; value:
    which one of its kind; within: the names of the steps that the point belongs to, the outermost first, or empty.
    """

    kind: str
    value: int | float | str | None = None
    within: str = ""

    @property
    def name(self) -> str:
        """The name in results.json (`checkpoint`) and in folders: `step-500`, `stage-gloss`, `blend-0.30`, `final`."""
        shown = f"{self.value:.2f}" if isinstance(self.value, float) else safe_name(str(self.value))
        own = "final" if self.kind == "end" else f"{self.kind}-{shown}"
        return f"{self.within}.{own}" if self.within else own

    def inside(self, step: str) -> Point:
        """Return the point as one of a chain's step."""
        return self._replace(within=f"{step}.{self.within}" if self.within else step)


END = Point("end")


@dataclass(frozen=True)
class Candidate:
    """A model, or any respondent, at a point.

    respondent: takes the exams; None if there is no model to ask (the point was examined before, or the end is put
    together from stages that each have a model of their own); step: number of optimiser steps so far; cost: the cost of
    everything up to this point (train_s, steps, tokens, peak_gib, ...), as far as the method knows it; product: the
    folder that it left on disk; notes: lines for the cell's card; scratch: folders that are no longer needed when the
    cell is done; changes: how many of the cell's changes it has learned, None for all; passed: a point in the middle of
    its training that is the same model if the weights are equal: training ended there; same: an earlier point that is
    the same model if the weights are equal, and stays a point of its own: its results are copied.
    """

    point: Point
    respondent: Respondent | None
    step: int | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    product: Path | None = None
    notes: Sequence[str] = ()
    scratch: Sequence[Path] = ()
    changes: int | None = None
    passed: Point | None = None
    same: Point | None = None


@dataclass(frozen=True)
class CellContext:
    """What a method receives: the changes, models, folder and settings of its cell.

    changes: the changes to teach, empty in a study without changes; sequence: if it is a number, the changes are taught
    one after another, and a candidate is expected after every `sequence` changes; None if all are taught at once;
    bench: the model that the method starts from, loaded and untouched; untouched: the study's own model, which is a
    different one if the method starts from a product; inputs: the further models that the method takes, by the name of
    the input; each is loaded when it is called;
    folder: the folder of the cell, or of a step of a chain; keep: which products stay on disk; resumable: whether
    training is saved while it runs, so that a kill does not lose it; saves: the steps after which training is examined;
    examined: whether a point was examined, by this run or an earlier one; select: the scores of a respondent on the
    exams that have the role of choosing a setting; stages: the tasks that are learned one after another;
    report_to: trackers of the cell's trainings, which write to the cell's folder; on_step: called with each training
    step; steps_before, part: for a step of a chain, the number of optimiser steps before it, and its name.
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
    """The cell's folder, if `folder` is that of a step of a chain."""

    @property
    def metrics(self) -> Path:
        """The file that gets one line per training step of the cell, at the time of the step."""
        return (self.home or self.folder) / "metrics.jsonl"

    def name(self, point: Point = END) -> str:
        """Return the name of a respondent of this cell, as used in sheets for marking and in files of answers."""
        return f"{self.folder.name}--{point.name}"

    def within(self, name: str, **changed: Any) -> CellContext:
        """Return the context of a step of a chain, with a folder and points of its own. changed: other fields."""
        examined = self.examined
        folder = self.folder / "steps" / name
        return replace(
            self,
            folder=folder,
            part=name,
            home=self.home or self.folder,
            examined=lambda point: examined(point.inside(name)),
            **changed,
        )


def handed_over(work: Callable[[Callable[[Candidate], None]], T]) -> Generator[Candidate, None, T]:
    """Run `work`, which takes a callback, as a generator, and return what `work` returns.

    Each candidate that `work` passes to its callback is yielded, and `work` continues when the next candidate is
    requested. An error that is raised at the `yield` is raised again inside `work`, where it called the callback.

    The reason: a trainer calls back from the middle of its loop, and a loop cannot be asked for its next checkpoint.
    Both run in one thread, one after the other (`greenlet` switches between two stacks), so that signals, random
    numbers and gradients behave as in a plain call.
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
