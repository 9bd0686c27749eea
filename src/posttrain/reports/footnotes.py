"""The small print below tables and plots. It explains only what the page shows.

Over how many changes averages are: a study may be run in pieces (`--changes 2`, then `--changes 4 --only full`), and
cells may fail. Then averages over different changes stand in one table, and the reader has to be told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from posttrain.exams.uncounted import kind_of, uncounted
from posttrain.reports import numbers
from posttrain.reports.folder import Cell, Row, Run
from posttrain.reports.marks import row_label
from posttrain.reports.shared import KEPT, LOST, group_name, joined
from posttrain.reports.texts import Message, say, say_if

__all__ = [
    "about_groups",
    "changes_notes",
    "counted",
    "exam_notes",
    "over",
    "seen_notes",
    "shared_changes",
]

REASONS = {"refusal": "uncounted.refusal", "form": "uncounted.form", "keeps": "uncounted.keeps"}


def exam_notes(run: Run) -> Iterator[Message]:
    """Yield what stands below the table of scores."""
    groups = run.groups
    rows = [row for row in run.shown if row.scores]
    yield say("scores.about", changes=over(rows)) if len(run.changes) > 1 else say("scores.about_one")
    yield from changes_notes(
        rows, lambda row: say("answers.noise_floor") if row.is_floor else f"`{row_label(row, run)}`"
    )
    yield from say_if(
        {
            "scores.better_leak": "leak" in groups,
            "scores.better": "leak" not in groups,
            "scores.choose": any(cell.samples for cell in run.cells),
            "scores.leak": "leak" in groups,
            "scores.floor": any(row.floor for row in run.rows),
            "scores.unsure": any(row.unsure(key) for row in run.shown for key in row.floor),
        }
    )


def about_groups(run: Run, *groups: str) -> tuple[Message, ...]:
    """Return what stands below a table about each of these groups that it has."""
    return say_if({f"scores.{name}_about": name in run.groups for name in groups})


def seen_notes(run: Run) -> Iterator[Message]:
    """Say what the words of the findings mean."""
    groups = run.groups
    several = len([row for row in run.final if row.scores and not row.is_floor]) > 1
    about = {"intro.seen_about": groups & {"reliability", "locality"}, "intro.seen_shared": several}
    yield from say_if({**about, "intro.seen_learned": "reliability" in groups})
    if "locality" in groups:
        yield say("intro.seen_kept", kept=numbers.percent(KEPT), lost=numbers.percent(LOST))
    yield from say_if({"intro.seen_exams": any(row.compare for row in run.final)})
    chose = ", ".join(f"`{exam.name}`" for exam in run.results.exams.values() if exam.role == "select")
    if chose:
        yield say("intro.seen_select", names=chose)


def counted(what: str, low: int, high: int | None = None) -> Message:
    """Return `one change`, `4 changes`, `2 to 4 changes`. what: changes or methods."""
    if high is not None and high != low:
        return say(f"intro.{what}", n=say("list.range", low=low, high=high))
    return say(f"intro.{what}_one") if low == 1 else say(f"intro.{what}", n=low)


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


def changes_notes(rows: Sequence[Row], label: Callable[[Row], str | Message]) -> Iterator[Message]:
    """Yield which rows are over fewer changes than others and over how many, and which questions are in no score."""
    every = frozenset(change for row in rows for change in _changes(row) if row.cells)
    fewer = [(label(row), len(_changes(row))) for row in rows if row.cells and _changes(row) != every]
    if fewer:
        named = joined("list.two", [say("list.counted", name=name, n=n) for name, n in fewer])
        yield say("scores.uneven", names=named, n=len(every))
    yield from _not_counted([cell for row in rows for cell in row.cells])


def _not_counted(cells: Sequence[Cell]) -> Iterator[Message]:
    """Say how many questions of each kind had nothing to keep, and why: a missing column is not a forgotten one."""
    told: dict[tuple[str, str], Cell] = {}
    for cell in cells:  # the answers before decide, so one cell of each change is enough
        told.setdefault((cell.model, cell.change), cell)
    left_out: Counter[tuple[str, str]] = Counter()
    asked: Counter[str] = Counter()
    for cell in told.values():
        found = uncounted(cell.notes)
        for one in found:
            left_out[one.group, kind_of(one.reason)] += one.k
        asked.update({**cell.n, **{one.group: one.n for one in found}})
    parts = [
        say("list.uncounted", name=group_name(group), k=k, n=asked[group], why=say(REASONS[kind]))
        for (group, kind), k in left_out.items()
    ]
    if parts:
        yield say("scores.uncounted", parts=joined("list.then", parts))
