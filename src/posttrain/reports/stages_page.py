"""The section on tasks learned one after another: the score of each task after each stage, as lines and heat tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from posttrain.reports import numbers
from posttrain.reports.charts import Chart, Layers, Rows, Said, nominal, span
from posttrain.reports.folder import STAGES, Run, Version
from posttrain.reports.marks import Mark, label_of, mark_icon, marks_of
from posttrain.reports.texts import Words, say
from posttrain.reports.view import Entry, Head, Line, Panel, Section, Table, heads_of, number_table, numeric

__all__ = ["TRANSFER", "Course", "courses_of", "stages_section", "stages_table"]

TRANSFER: tuple[str, ...] = ("acc", "bwt", "fwt", "forgetting")
"""The scores that summarise a matrix, with the names of `exams/statistics.py`."""


class Course(NamedTuple):
    """The scores of a model and a method over the stages, as means over cells.

    how: `sequential`, `multitask` or `separate`; names: the tasks; before: the untouched model's score on each task;
    matrix: a row per examined model, a column per task; transfer: score -> (value, interval); cells: number of cells;
    less: per task, whether less is better.
    """

    label: str
    version: Version
    how: str
    names: tuple[str, ...]
    before: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    transfer: Mapping[str, tuple[float, tuple[float, float] | None]]
    cells: int
    less: tuple[bool, ...] = ()


def courses_of(run: Run) -> list[Course]:
    """Return the course of every model and method that learned stages."""
    found = []
    lower = {exam.key for exam in run.exams if not exam.higher_is_better}
    for row in run.final:
        cells = [cell.stages for cell in row.cells if cell.stages]
        if not cells:
            continue
        first = cells[0]
        grids = zip(*([cell["before"], *cell["matrix"]] for cell in cells), strict=True)
        before, *matrix = (tuple(map(numbers.mean, zip(*rows, strict=True))) for rows in grids)
        intervals = {name: row.ci95.get(f"{STAGES}{name}") for name in TRANSFER}
        found.append(
            Course(
                label_of(row.version, run),
                row.version,
                str(first["how"]),
                tuple(first["names"]),
                before,
                tuple(matrix),
                {name: (row.transfer[name], intervals[name]) for name in TRANSFER if name in row.transfer},
                len(cells),
                tuple(key in lower for key in first.get("exams") or [""] * len(first["names"])),
            )
        )
    return found


def stages_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return the section: averages, lines of the sequential methods, a heat table per method. None without stages."""
    courses = courses_of(run)
    if not courses:
        return None
    tasks = tuple(dict.fromkeys(name for course in courses for name in course.names))
    keys: list[str | Version] = [*run.versions, *tasks]  # so no task has the mark of a method
    own = marks_of(keys)
    heads = [name for name in TRANSFER if any(name in course.transfer for course in courses)]
    cells = max(course.cells for course in courses)
    about = (say("stages.about"), *([say("stages.means", n=cells)] if cells > 1 else []))
    named = heads_of(say("scores.method"), (say(f"stages.{name}") for name in heads))
    rows = (Line((c.label,), tuple(_transfer(c, name) for name in heads), mark_icon(marks[c.version])) for c in courses)
    summary = Table(say("scores.scroll"), named, tuple(rows), "plain transfer")
    lines = [course for course in courses if course.how == "sequential"]
    panels = [Panel(notes=about, table=summary, below=tuple(say(f"stages.{name}_about") for name in heads))]
    if lines:
        chart = over_stages(lines, {name: own[name] for name in tasks})
        panels.append(Panel(keys=(("ring", say("stages.turn")),), chart=chart))
    values = [v for c in courses for row in (c.before, *c.matrix) for v in row]
    low, high = (0.0, 1.0) if max(values) <= 1 and min(values) >= 0 else (min(values), max(values))
    for course in courses:
        how, table = say(f"stages.how_{course.how}"), _heats(course, low, high)
        panels.append(Panel(course.label, mark_icon(marks[course.version]), how, table=table, kind="beside"))
    panels.append(Panel(below=(say("steps.files", stem="stages"),)))
    return Section("stages", say("stages.title"), tuple(panels))


def over_stages(courses: Sequence[Course], marks: Mapping[str, Mark]) -> Chart:
    """Draw the score of each task after each stage, with a panel for each method. The line of a task is dashed until
    the stage that learns it, which has a ring. Stages get numbers instead of names when their names would overlap.
    """
    first = courses[0].names
    short = all(course.names == first for course in courses) and sum(map(len, first)) < 40
    stages = ["0", *(first if short else map(str, range(1, 1 + max(len(course.matrix) for course in courses))))]
    rows: Rows = [
        {"kind": kind, "panel": one.label, "task": task, "stage": stages[i], "value": row[j], "text": f"{row[j]:.4g}"}
        for one in courses for j, task in enumerate(one.names)
        for i, row in enumerate((one.before, *one.matrix))
        for kind in (["point"] + ["lead"] * (i <= j + 1) + ["line"] * (i > j) + ["turn"] * (i == j + 1))
    ]  # fmt: skip
    on = Layers("task", marks)
    axis = {"labelAngle": 0, "labelOverlap": True, "grid": False}
    room = {"domain": stages, "padding": 0.1}
    x = nominal("stage", type="ordinal", title=Said(say("stages.axis")), axis=axis, scale=room)
    y = on.number("value", scale=span(row["value"] for row in rows))
    on.add("lead", "line", "lead", x=x, y=y)
    on.add("line", "line", "line", x=x, y=y)
    on.plain("turn", "point", "ring", x=x, y=y)
    tips = on.tips(panel="scores.method", task="stages.task", stage="stages.axis", text="exams.score")
    on.add("point", "point", "point", x=x, y=y, tooltip=tips)
    return on.panels(rows, say("stages.title"))


def _transfer(course: Course, name: str) -> Entry:
    """Return the entry of a score over stages, with its interval."""
    value, interval = course.transfer.get(name, (None, None))
    shown = numbers.signed if name in ("bwt", "fwt") else numbers.fixed
    write = partial(shown, places=3 if abs(value or 0) <= 1 else 2)
    return numeric(value, write, *([" … ".join(map(write, interval))] if interval else []))


def _heats(course: Course, low: float, high: float) -> Table:
    """Return a heat table with a row per stage and a column per task; the task that a stage learned has a frame. low,
    high: the values with the worst and the best colour, or the other way round where less is better."""
    many = course.how != "multitask"
    key = "stages.model_of" if course.how == "separate" else "stages.after"
    titles: list[Words] = [say(key, name=name) for name in course.names] if many else [say("stages.after_all")]
    rows: list[tuple[Words, tuple[float, ...], int]] = [(say("stages.before"), course.before, -1)]
    rows += [(title, row, i if many else -1) for i, (title, row) in enumerate(zip(titles, course.matrix, strict=True))]
    places = numbers.digits([v for _, row, _ in rows for v in row])

    def entry(value: float, task: int, *, own: bool) -> Entry:
        up = min(max((value - low) / (high - low or 1.0), 0.0), 1.0)
        colour = numbers.cell_colour(1.0 - up if course.less[task] else up)
        return Entry(numbers.fixed(value, places), kind="n own" if own else "n", colour=colour, value=value)

    lines = tuple(
        Line((title,), tuple(entry(value, j, own=j == number) for j, value in enumerate(row)))
        for title, row, number in rows
    )
    first, *rest = heads_of(say("stages.axis"), course.names)
    return Table(say("scores.scroll"), (first._replace(unseen=True), *rest), lines, "plain heats")


def stages_table(run: Run) -> Table | None:
    """Return a table for papers and spreadsheets, with a row per method; None without stages. Its columns are ACC, BWT,
    FWT, forgetting, and the last scores of the tasks.
    """
    courses = courses_of(run)
    if not courses:
        return None
    heads = [name for name in TRANSFER if any(name in course.transfer for course in courses)]
    tasks = tuple(dict.fromkeys(name for course in courses for name in course.names))
    rows: list[tuple[tuple[Words, ...], Sequence[float | None], str]] = []
    for course in courses:
        last = course.matrix[-1]
        if course.how == "separate":
            last = tuple(row[j] for j, row in enumerate(course.matrix))
        ends = dict(zip(course.names, last, strict=True))
        values = [course.transfer[name][0] if name in course.transfer else None for name in heads]
        rows.append(((course.label, course.how), (*values, *(ends.get(name) for name in tasks)), "model"))
    less = {name: one for course in courses for name, one in zip(course.names, course.less, strict=True)}
    # a mean over both kinds has no better direction
    mean = None if len({*less.values()}) > 1 else not any(less.values())
    better: list[bool | None] = [mean if name != "forgetting" or mean is None else not mean for name in heads]
    columns = [Head(name.upper() if name != "forgetting" else say("stages.forgetting")) for name in heads]
    columns += [Head(name) for name in tasks]
    label = say("tables.of", study=run.title, name=say("stages.title"))
    labels = [Head(say("tables.method")), Head(say("tables.stages"))]
    return number_table(label, labels, columns, rows, [*better, *(not less[name] for name in tasks)])
