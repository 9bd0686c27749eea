"""Events that a run reports while it works: cells that begin and end, training steps, exams, other long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from posttrain.exams.results import CellResult
    from posttrain.models.meter import Doing
    from posttrain.studies.plan import Cell

__all__ = ["Event", "ExamEvent", "Watcher"]


class Event(NamedTuple):
    """A cell has begun (`wall_s` is None) or ended.

    done, total: the finished cells and all cells of the cell's model that this run works on; wall_s: the cell's
    seconds; left_s: the estimated seconds for those that are not finished; result: of a cell that has ended.
    """

    cell: Cell
    done: int
    total: int
    wall_s: float | None = None
    left_s: float | None = None
    result: CellResult | None = None


class ExamEvent(NamedTuple):
    """The progress of an exam. checkpoint: the point's name, or `before` for the untouched model; done, total: number
    of questions; left_s: expected seconds for the rest of this exam, None if unknown; tokens_per_s: mean speed so far.
    """

    model: str
    checkpoint: str
    exam: str
    done: int = 0
    total: int = 0
    left_s: float | None = None
    tokens_per_s: float = 0.0


class Watcher:
    """Receives the events of a run. This base class ignores them. If cells run in several processes, `turn` names the
    cell that the next events belong to.
    """

    def turn(self, cell: Cell) -> None:
        """Receive the cell that the following steps, exams and other work belong to."""

    def say(self, line: str) -> None:
        """Receive a line for the user: a choice that was made, a count, a problem."""

    def begins(self, event: Event) -> None:
        """Receive the beginning of a cell."""

    def ends(self, event: Event) -> None:
        """Receive the end of a cell that is done or has failed."""

    def step(self, entry: Mapping[str, Any]) -> None:
        """Receive a training step of the present cell."""

    def exam(self, event: ExamEvent) -> None:
        """Receive the beginning or the progress of an exam of the present cell or of the untouched model."""

    def doing(self, work: Doing) -> None:
        """Receive the beginning or the progress of other long work of the present cell."""
