"""The section on edits: what is there right after an edit, what is left of it at the end, and what else is kept.

It covers every method with points between edits (`edits-20`). In a study that teaches its changes one after another, a
point is examined on all that was taught so far. So two numbers are there for each change:

    right after     its reliability at the first point at which it was taught
    at the end      its reliability at the last point

Every method that edits has, besides, what its editor noted of each edit.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from posttrain.reports import numbers
from posttrain.reports.charts import SHARES, Chart, Layers, Rows, Said, span
from posttrain.reports.folder import Cell, Run, Version
from posttrain.reports.marks import Mark, label_of, mark_icon, marks_of
from posttrain.reports.texts import Message, say
from posttrain.reports.view import Entry, Head, Line, Panel, Section, Table, fixed_column, heads_of, numeric

__all__ = ["Written", "edits_section", "written_of"]

POINT = re.compile(r"^edits-(\d+)$")
"""The name of a point between edits; group 1 is the number of edits so far."""
RELIABILITY = "reliability"


class Written(NamedTuple):
    """What a point shows, all shares from 0 to 1: edits so far; newly: reliability of the changes that were written
    since the point before, None where all are written together; all: reliability of all that were examined; kept: the
    mean of what must stay; exams: their headlines.
    """

    edits: int
    newly: float | None
    all: float | None
    kept: float | None
    exams: Mapping[str, float]


def written_of(run: Run) -> dict[Version, tuple[Written, ...]]:
    """Return the points of every model and method that has points between edits, in the order of edits."""
    found: dict[Version, tuple[Written, ...]] = {}
    for version in run.versions:
        cells = [cell for cell in run.cells if cell.version == version and cell.scores]
        points: dict[int, list[Cell]] = {}
        for cell in cells:
            count = _edits(cell)
            if count is not None:
                points.setdefault(count, []).append(cell)
        if any(POINT.match(cell.checkpoint) for cell in cells):
            found[version] = tuple(_points(run, points))
    return found


def _edits(cell: Cell) -> int | None:
    """Return how many edits were written at a cell's point, None for other points."""
    match = POINT.match(cell.checkpoint)
    if match:
        return int(match[1])
    return round(cell.cost["edits"]) if cell.checkpoint == "final" and "edits" in cell.cost else None


def _points(run: Run, points: Mapping[int, list[Cell]]) -> list[Written]:
    made: list[Written] = []
    examined = {count: {(cell.change, cell.seed) for cell in points[count]} for count in sorted(points)}
    together = examined[max(points)] <= examined[min(points)]  # no change came later: each is examined at every point
    known: set[tuple[str, int]] = set()
    for count in sorted(points):
        cells = points[count]
        new = [cell for cell in cells if (cell.change, cell.seed) not in known]
        known |= examined[count]
        exams = {
            exam.key: numbers.mean(values)
            for exam in run.exams
            if (values := [cell.scores[exam.key] for cell in cells if exam.key in cell.scores])
        }
        kept = [value for cell in cells if (value := numbers.kept(cell.scores)) is not None]
        made.append(
            Written(
                count,
                None if together or not new else _reliability(new),
                _reliability(cells),
                numbers.mean(kept) if kept else None,
                exams,
            )
        )
    return made


def _reliability(cells: list[Cell]) -> float | None:
    values = [cell.scores[RELIABILITY] for cell in cells if RELIABILITY in cell.scores]
    return numbers.mean(values) if values else None


def edits_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return the section: a chart of all methods over the number of edits, then the numbers of each, and what editors
    noted of single edits; None without edits.
    """
    panels = (*_over_edits(run, marks), *_noted(run, marks))
    return Section("edits", say("edits.title"), panels) if panels else None


def _over_edits(run: Run, marks: Mapping[Version, Mark]) -> tuple[Panel, ...]:
    found = written_of(run)
    if not found:
        return ()
    series = {version: _series(points) for version, points in found.items()}
    own_names = {"newly": say("edits.newly"), "all": say("edits.all"), "kept": say("edits.kept")}
    names = {n: own_names.get(n) or say("verbatim", text=n) for own in series.values() for n in own}
    drawn = [n for n in names if all(0 <= v <= 1 for own in series.values() for _, v in own.get(n, ()))]
    keys: list[str | Version] = [*run.versions, *drawn]  # so no score has the mark of a method
    own_marks = marks_of(keys)
    labels = {version: label_of(version, run) for version in found}
    named = {labels[version]: own for version, own in series.items()}
    chart = over_edits(named, {n: names[n] for n in drawn}, {n: own_marks[n] for n in drawn})
    panels = (
        Panel(labels[v], mark_icon(marks[v]), table=_table(own, names), kind="beside") for v, own in series.items()
    )
    return (Panel(say("edits.over"), notes=(say("edits.about"),), chart=chart), *panels)


NOTED: Mapping[str, Callable[[Sequence[float]], float]] = {
    "edits.nats": max,
    "edits.alignment": min,
    "edits.share": max,
    "edits.condition": max,
    "edits.realised": min,
}
"""What an editor notes of an edit, and which of many is the worst."""


def _noted(run: Run, marks: Mapping[Version, Mark]) -> tuple[Panel, ...]:
    """Return a table with a row for each method that edits: of each figure the median over edits and the worst."""
    lines = []
    for version in run.versions:
        folders = {cell.folder: cell.edits for cell in run.cells if cell.version == version and cell.edits}
        figures = [row["figures"] for own in folders.values() for row in own if isinstance(row.get("figures"), dict)]
        if figures:
            written = [own for own in figures if not own.get("skipped")]
            skipped = numeric(float(len(figures) - len(written)), numbers.amount)
            found = (_middle(written, name.partition(".")[2], worst) for name, worst in NOTED.items())
            entries = (numeric(float(len(written)), numbers.amount), skipped, *found)
            lines.append(Line((label_of(version, run),), entries, mark_icon(marks[version])))
    if not lines:
        return ()
    names = ("edits.written", "edits.skipped", *NOTED)
    heads = (Head(say("scores.method")), *(Head(say(name), kind="n") for name in names))
    table = Table(say("scores.scroll"), heads, tuple(lines))
    return (Panel(say("edits.noted"), notes=(say("edits.noted_about"),), table=table),)


def _middle(figures: Sequence[Mapping[str, Any]], name: str, worst: Callable[[Sequence[float]], float]) -> Entry:
    """Return the median of a figure, and below it the worst where they differ as printed."""
    values = [float(own[name]) for own in figures if isinstance(own.get(name), int | float)]
    if not values:
        return numeric(None, numbers.amount)
    middle, end = statistics.median(values), numbers.amount(worst(values))
    return numeric(middle, numbers.amount, *([end] if end != numbers.amount(middle) else []))


Series = Mapping[str, tuple[tuple[int, float], ...]]
"""Score -> (number of edits, value) at each point."""


def _series(points: tuple[Written, ...]) -> Series:
    own: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        values = {"newly": point.newly, "all": point.all, "kept": point.kept, **point.exams}
        for name, value in values.items():
            if value is not None:
                own.setdefault(name, []).append((point.edits, value))
    return {name: tuple(values) for name, values in own.items()}


def over_edits(series: Mapping[str, Series], names: Mapping[str, Message], marks: Mapping[str, Mark]) -> Chart:
    """Draw scores in per cent over the number of edits, with a panel for each method."""
    on = Layers("score", {Said(names[key]): mark for key, mark in marks.items()})
    rows: Rows = [
        {"kind": "point", "panel": label, "score": Said(names[key]), "edits": n, "value": 100 * v, "text": f"{v:.4g}"}
        for label, own in series.items() for key in marks for n, v in own.get(key, ())
    ]  # fmt: skip
    x = on.number("edits", "edits.axis", grid=False, scale=span((row["edits"] for row in rows), 0))
    y = on.number("value", values=SHARES, scale={"domain": [0, 100]})
    on.add("point", "line", "line", x=x, y=y)
    tips = on.tips(panel="scores.method", score="exams.score", edits="edits.axis", text="details.env_value")
    on.add("point", "point", "point", x=x, y=y, tooltip=tips)
    return replace(on.panels(rows, say("edits.over")), names=tuple(marks))


def _table(own: Series, names: Mapping[str, Message]) -> Table:
    counts = sorted({n for points in own.values() for n, _ in points})
    shown = (
        counts if len(counts) <= COLUMNS else [counts[i * (len(counts) - 1) // (COLUMNS - 1)] for i in range(COLUMNS)]
    )
    lines = tuple(
        Line((names[name],), tuple(fixed_column([dict(points).get(n) for n in shown]))) for name, points in own.items()
    )
    return Table(say("scores.scroll"), heads_of(say("edits.axis"), map(str, shown)), lines, "plain transfer")


COLUMNS = 10
"""Largest number of points in a table; they are drawn evenly from all."""
