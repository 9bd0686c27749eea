"""What a run tells while it works: cells that begin and end, training steps, exams, other long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from posttrain.exams.results import CellResult
from posttrain.models.meter import Doing
from posttrain.studies.examine import ExamEvent
from posttrain.studies.plan import Cell

__all__ = ["Event", "ExamEvent", "Silent", "Watcher"]


class Event(NamedTuple):
    """A cell has begun (`wall_s` None) or ended; done and total count the cells of this run, left_s is a guess."""

    cell: Cell
    done: int
    total: int
    wall_s: float | None = None
    left_s: float | None = None
    result: CellResult | None = None


class Watcher(Protocol):
    """Told what happens. Where cells run in several processes, `turn` says whose the next events are."""

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


class Silent:
    """A watcher that says nothing."""

    def turn(self, cell: Cell) -> None:
        return None

    def say(self, line: str) -> None:
        return None

    def begins(self, event: Event) -> None:
        return None

    def ends(self, event: Event) -> None:
        return None

    def step(self, entry: Mapping[str, Any]) -> None:
        return None

    def exam(self, event: ExamEvent) -> None:
        return None

    def doing(self, work: Doing) -> None:
        return None
