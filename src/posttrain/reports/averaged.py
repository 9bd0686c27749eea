"""Over how many changes the rows of a table are averages, which rows are over fewer, and which questions are in none.

A study may be run in pieces (`--changes 2`, then `--changes 4 --only full`), and cells may fail. Then averages over
different changes stand in one table, and the reader has to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.scores import kind_of, uncounted
from posttrain.reports.folder import Cell, Row
from posttrain.reports.shared import group_name, joined
from posttrain.reports.texts import Message, Words, say

__all__ = ["counted", "method_of", "not_counted", "over", "shared_changes", "uneven"]

REASONS = {"refusal": "uncounted.refusal", "form": "uncounted.form", "keeps": "uncounted.keeps"}


def counted(what: str, low: int, high: int | None = None) -> Message:
    """Return `one change`, `4 changes`, `2 to 4 changes`. what: changes or methods."""
    if high is not None and high != low:
        return say(f"intro.{what}", n=say("list.range", low=low, high=high))
    return say(f"intro.{what}_one") if low == 1 else say(f"intro.{what}", n=low)


def method_of(row: Row | Cell) -> Words:
    """Return the method's name; of the noise floor, which is none, words."""
    return say("answers.noise_floor") if row.method == NOISE_FLOOR else row.method


def _changes(row: Row) -> frozenset[str]:
    """Return the changes of a row. Cells of other exams have no change by name; a row of only such cells has one."""
    named = frozenset(cell.change for cell in row.cells if cell.change)
    return named or frozenset(cell.change for cell in row.cells)


def over(rows: Sequence[Row]) -> Message:
    """Return over how many changes the numbers of the rows are."""
    counts = [len(_changes(row)) for row in rows if row.cells]
    return counted("changes", min(counts), max(counts)) if counts else counted("changes", 0)


def shared_changes(rows: Sequence[Row]) -> int:
    """Return how many changes all of the rows have."""
    each = [_changes(row) for row in rows if row.cells]
    return len(frozenset.intersection(*each)) if each else 0


def uneven(rows: Sequence[Row], label: Callable[[Row], str | Message]) -> Message | None:
    """Name the rows that are over fewer changes than others, and over how many; None where there are no such rows."""
    every = frozenset(change for row in rows for change in _changes(row) if row.cells)
    fewer = [(label(row), len(_changes(row))) for row in rows if row.cells and _changes(row) != every]
    if not fewer:
        return None
    named = joined("list.two", [say("list.counted", name=name, n=n) for name, n in fewer])
    return say("scores.uneven", names=named, n=len(every))


def not_counted(cells: Sequence[Cell]) -> Message | None:
    """Say how many questions of each kind had nothing to keep, and why; None where all had.

    A missing column is not a forgotten one. The answers before decide, so one cell of each change is enough.
    """
    told: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        if cell.done:
            told.setdefault((cell.model, cell.change), cell)
    left_out: dict[tuple[str, str], int] = {}
    asked: dict[str, int] = {}
    for cell in told.values():
        found = uncounted(cell.notes)
        for one in found:
            key = (one.group, kind_of(one.reason))
            left_out[key] = left_out.get(key, 0) + one.k
        for group, n in {**cell.n, **{one.group: one.n for one in found}}.items():
            asked[group] = asked.get(group, 0) + n
    if not left_out:
        return None
    parts = [
        say("list.uncounted", name=group_name(group), k=k, n=asked[group], why=say(REASONS[kind]))
        for (group, kind), k in left_out.items()
    ]
    return say("scores.uncounted", parts=joined("list.then", parts))
