"""The section on tasks learned one after another: what each stage left of every task, as heat tables and lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from posttrain.reports import numbers
from posttrain.reports.folder import Run, Version
from posttrain.reports.plots import Frame, text_of
from posttrain.reports.sizes import BESIDE, Size, drawn
from posttrain.reports.steps import range_ticks
from posttrain.reports.svg import Mark, element, mark, mark_icon, marks_of, polyline, svg_text, text_width
from posttrain.reports.tables_out import PlainRow, PlainTable
from posttrain.reports.texts import Message, catalogue, say

__all__ = ["TRANSFER", "Course", "StagesView", "courses_of", "stages_table", "stages_view"]

TRANSFER: tuple[str, ...] = ("acc", "bwt", "fwt", "forgetting")
"""What a matrix comes to, as `exams/transfer.py` names it."""


class Course(NamedTuple):
    """A model and a method over the stages, the mean of its cells. how: sequential, multitask or separate; matrix: a
    row per examined model, a column per task; transfer: score -> value and interval.
    """

    model: str
    method: str
    how: str
    names: tuple[str, ...]
    before: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    transfer: Mapping[str, tuple[float, tuple[float, float] | None]]
    cells: int
    less: tuple[bool, ...] = ()
    """Per task: whether less is better in its exam, as in perplexity."""


class HeatCell(NamedTuple):
    """A score of the heat table; own: of the task that the stage has just taught."""

    text: str
    colour: str
    own: bool


class HeatLine(NamedTuple):
    """A row: after which stage, and the scores of the tasks."""

    name: Message
    cells: tuple[HeatCell, ...]


class Panel(NamedTuple):
    """A method's heat table, and its lines (none where there is one training only)."""

    label: str
    icon: Markup
    how: str
    names: tuple[str, ...]
    lines: tuple[HeatLine, ...]
    svg: Markup


class SummaryLine(NamedTuple):
    """A row of the table of all methods: values with their intervals."""

    label: str
    icon: Markup
    values: tuple[tuple[str, str], ...]


class StagesView(NamedTuple):
    """The section: the table of methods, the panels, the tasks with their marks, how many cells a mean is over."""

    heads: tuple[str, ...]
    summary: tuple[SummaryLine, ...]
    panels: tuple[Panel, ...]
    tasks: tuple[tuple[str, Markup], ...]
    cells: int


def courses_of(run: Run) -> list[Course]:
    """Every model and method that has learned stages."""
    found = []
    lower = {exam.key for exam in run.exams if not exam.higher_is_better}
    for row in run.final:
        cells = [cell.stages for cell in row.cells if cell.stages]
        if not cells:
            continue
        first = cells[0]
        shape = range(len(first["matrix"]))
        tasks = range(len(first["names"]))
        found.append(
            Course(
                row.model,
                row.method,
                str(first["how"]),
                tuple(first["names"]),
                tuple(numbers.mean([cell["before"][j] for cell in cells]) for j in tasks),
                tuple(tuple(numbers.mean([cell["matrix"][i][j] for cell in cells]) for j in tasks) for i in shape),
                {name: (row.transfer[name], row.transfer_ci95.get(name)) for name in TRANSFER if name in row.transfer},
                len(cells),
                tuple(key in lower for key in first.get("exams") or [""] * len(first["names"])),
            )
        )
    return found


def stages_view(run: Run, marks: Mapping[Version, Mark]) -> StagesView | None:
    """The section; None where no stages were learned."""
    courses = courses_of(run)
    if not courses:
        return None
    tasks = tuple(dict.fromkeys(name for course in courses for name in course.names))
    keys: list[str | Version] = [*run.versions, *tasks]  # a task is never drawn as a method is
    own = marks_of(keys)
    values = [v for c in courses for row in (c.before, *c.matrix) for v in row]
    ticks = (
        [0.0, 0.25, 0.5, 0.75, 1.0] if max(values) <= 1 and min(values) >= 0 else range_ticks(min(values), max(values))
    )
    heads = tuple(name for name in TRANSFER if any(name in course.transfer for course in courses))
    return StagesView(
        heads,
        tuple(_summary(run, course, heads, marks) for course in courses),
        tuple(_panel(run, course, own, ticks, marks) for course in courses),
        tuple((name, mark_icon(own[name])) for name in tasks),
        max(course.cells for course in courses),
    )


def label_of(run: Run, course: Course) -> str:
    """The method, with the model where there are several."""
    return f"{course.method} ({course.model.rsplit('/', 1)[-1]})" if len(run.models) > 1 else course.method


def _summary(run: Run, course: Course, heads: Sequence[str], marks: Mapping[Version, Mark]) -> SummaryLine:
    def shown(name: str) -> tuple[str, str]:
        if name not in course.transfer:
            return numbers.MISSING, ""
        value, interval = course.transfer[name]
        places = 3 if abs(value) <= 1 else 2
        write = numbers.signed if name in ("bwt", "fwt") else numbers.fixed
        between = "" if interval is None else " … ".join(write(end, places) for end in interval)
        return write(value, places), between

    return SummaryLine(
        label_of(run, course), mark_icon(marks[course.model, course.method]), tuple(shown(name) for name in heads)
    )


def _panel(
    run: Run, course: Course, own: Mapping[str | Version, Mark], ticks: Sequence[float], marks: Mapping[Version, Mark]
) -> Panel:
    many = course.how != "multitask"
    titles = [say("stages.after", name=name) for name in course.names] if many else [say("stages.after_all")]
    if course.how == "separate":
        titles = [say("stages.model_of", name=name) for name in course.names]
    rows = [(say("stages.before"), course.before, -1)]
    rows += [(title, row, i if many else -1) for i, (title, row) in enumerate(zip(titles, course.matrix, strict=True))]
    low, high = ticks[0], ticks[-1]
    places = numbers.digits([v for _, row, _ in rows for v in row])

    def cell(value: float, task: int, own_task: bool) -> HeatCell:
        up = min(max((value - low) / (high - low), 0.0), 1.0)
        good = 1.0 - up if course.less[task] else up
        return HeatCell(numbers.fixed(value, places), numbers.cell_colour(good), own_task)

    lines = tuple(
        HeatLine(title, tuple(cell(value, j, j == number) for j, value in enumerate(row)))
        for title, row, number in rows
    )
    label = label_of(run, course)
    said = say("stages.label", method=label)
    svg = Markup()
    if course.how == "sequential":
        svg = drawn(BESIDE, lambda size: _lines(course, own, ticks, said, size))
    return Panel(label, mark_icon(marks[course.model, course.method]), course.how, course.names, lines, svg)


def _lines(
    course: Course, own: Mapping[str | Version, Mark], ticks: Sequence[float], label: Message, size: Size
) -> Markup:
    """The score of each task after each stage; a task's line is thin until it is its turn, where a ring stands."""
    width, height, class_ = size
    frame = Frame(46, 12, width - 46 - 14, height - 12 - 44)
    last = len(course.matrix)
    low, high = ticks[0], ticks[-1]

    def at(place: int, value: float) -> tuple[float, float]:
        return frame.x(place / last), frame.y(min(max((value - low) / (high - low), 0.0), 1.0))

    parts: list[Markup] = []
    places = numbers.digits(ticks) if high > 1 else 2
    for tick in ticks:
        y = at(0, tick)[1]
        parts.append(polyline([(frame.x(0), y), (frame.x(1), y)], class_="grid"))
        parts.append(svg_text(numbers.fixed(tick, places), frame.x(0) - 6, y + 4, class_="tick", text_anchor="end"))
    parts += _stage_names(course, frame, last)
    rows = (course.before, *course.matrix)
    for j, name in enumerate(course.names):
        points = [at(i, row[j]) for i, row in enumerate(rows)]
        colour = own[name].colour
        parts.append(polyline(points[: j + 2], class_="lead-in", stroke=colour))
        parts.append(polyline(points[j + 1 :], class_="thick", stroke=colour))
        for i, (x, y) in enumerate(points):
            title = element("title", Markup.escape(f"{name} ({i}/{last}): {rows[i][j]:.4g}"))
            ring = [element("circle", cx=x, cy=y, r=8.0, class_="best-ring")] if i == j + 1 else []
            parts.append(element("g", title, *ring, mark(own[name], x, y, 4)))
    return element(
        "svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", class_=f"chart panel {class_}", role="img",
        aria_label=text_of(label),
    )  # fmt: skip


def _stage_names(course: Course, frame: Frame, last: int) -> Iterator[Markup]:
    """The stages below the axis; names that would run into each other become numbers."""
    room = frame.width / last - 6
    short = all(text_width(name, 12) <= room for name in course.names)
    yield svg_text("0", frame.x(0), frame.y(0) + 17, class_="tick", text_anchor="middle")
    for i, name in enumerate(course.names, start=1):
        shown = name if short else str(i)
        anchor = "end" if short and i == last else "middle"
        yield svg_text(shown, frame.x(i / last) + (8 if anchor == "end" else 0), frame.y(0) + 17, class_="tick",
                       text_anchor=anchor)  # fmt: skip
    yield svg_text(say("stages.axis"), frame.x(0.5), frame.y(0) + 37, class_="axis", text_anchor="middle")


def stages_table(run: Run, *, language: str = "en") -> PlainTable | None:
    """Methods x ACC, BWT, FWT, forgetting, and the last scores of the tasks: for papers and spreadsheets."""
    courses = courses_of(run)
    if not courses:
        return None
    heads = tuple(name for name in TRANSFER if any(name in course.transfer for course in courses))
    tasks = tuple(dict.fromkeys(name for course in courses for name in course.names))
    rows = []
    for course in courses:
        last = course.matrix[-1]
        if course.how == "separate":
            last = tuple(row[j] for j, row in enumerate(course.matrix))
        ends = dict(zip(course.names, last, strict=True))
        values = [course.transfer[name][0] if name in course.transfer else None for name in heads]
        rows.append(PlainRow((label_of(run, course), course.how), (*values, *(ends.get(name) for name in tasks))))
    less = {name: one for course in courses for name, one in zip(course.names, course.less, strict=True)}
    mean = None if len({*less.values()}) > 1 else not any(less.values())  # a mean over both kinds has no better end
    better: list[bool | None] = [mean if name != "forgetting" or mean is None else not mean for name in heads]
    keys = ("tables.method", "tables.stages")
    words = catalogue(language)
    columns = (*(name.upper() if name != "forgetting" else words["stages.forgetting"] for name in heads), *tasks)
    return PlainTable(
        "stages",
        tuple(words[key] for key in keys),
        columns,
        tuple(rows),
        (*better, *(not less[name] for name in tasks)),
        keys,
        f"{run.title}: {words['stages.title']}",
    )
