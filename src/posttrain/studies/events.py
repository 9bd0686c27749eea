"""What a run tells while it works: cells that begin and end, training steps, exams, other long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from posttrain.exams.results import CellResult
    from posttrain.models.meter import Doing
    from posttrain.studies.plan import Cell

__all__ = ["Event", "ExamEvent", "Watcher"]


class Event(NamedTuple):
    """A cell has begun (`wall_s` None) or ended; done and total count the cells of this run, left_s is a guess."""

    cell: Cell
    done: int
    total: int
    wall_s: float | None = None
    left_s: float | None = None
    result: CellResult | None = None


class ExamEvent(NamedTuple):
    """How far an exam is. checkpoint: the point's name, or `before` of the untouched model; done, total: questions
    asked; left_s: expected for the rest of this exam, None where nothing is known; tokens_per_s: so far.
    """

    model: str
    checkpoint: str
    exam: str
    done: int = 0
    total: int = 0
    left_s: float | None = None
    tokens_per_s: float = 0.0


class Watcher:
    """Told what happens; this one says nothing. Where cells run in several processes, `turn` says whose the next events
    are.
    """

    def turn(self, cell: Cell) -> None:
        """The steps, exams and works that follow are of this cell."""

    def say(self, line: str) -> None:
        """A choice made, a count, a problem."""

    def begins(self, event: Event) -> None:
        """A cell begins."""

    def ends(self, event: Event) -> None:
        """A cell is done or has failed."""

    def step(self, entry: Mapping[str, Any]) -> None:
        """A training step of the present cell."""

    def exam(self, event: ExamEvent) -> None:
        """An exam of the present cell, or of the untouched model, begins or goes on."""

    def doing(self, work: Doing) -> None:
        """Other long work of the present cell begins or goes on."""
