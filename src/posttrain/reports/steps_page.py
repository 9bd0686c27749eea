"""The section over training steps: for every exam and change-exam group, a panel per model and method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from posttrain.exams.results import ExamInfo
from posttrain.exams.statistics import share_over_changes
from posttrain.reports import numbers
from posttrain.reports.exam_page import label_of
from posttrain.reports.exam_plots import PanelScale, step_panel
from posttrain.reports.folder import Row, Run, Version, safe_name
from posttrain.reports.sizes import Size, columns_of, drawn, panel_sizes
from posttrain.reports.steps import StepPoint, best, range_ticks, starts_to_fall
from posttrain.reports.svg import Mark, mark_icon
from posttrain.reports.tables_out import PlainTable, plain_table
from posttrain.reports.texts import Message, say

__all__ = ["KNOWLEDGE", "Course", "StepPanel", "courses", "exam_points", "falls", "steps_view"]

KNOWLEDGE = "can.knowledge"
"""Exams whose headline belongs to this capability say where general knowledge starts to fall."""

CHANGE_GROUPS: tuple[str, ...] = ("reliability", "generality", "locality")


class StepPanel(NamedTuple):
    """A panel with its legend: what is best and from where on the score has fallen."""

    label: str
    icon: Markup
    svg: Markup
    remarks: tuple[Message, ...]
    falls: bool = False


class Course(NamedTuple):
    """An exam over training. table: the numbers of the panels, None for the change exam's groups."""

    name: Message
    score: str
    panels: tuple[StepPanel, ...]
    table: PlainTable | None
    stem: str = ""
    untouched: bool = False
    chance: bool = False
    knowledge: bool = False
    falls: bool = False
    """Which lines and signs some panel has: only they are in the legend."""

    @property
    def columns(self) -> int:
        """Of its panels on a wide page."""
        return columns_of(len(self.panels))


def exam_points(run: Run, exam: ExamInfo, version: Version) -> list[StepPoint]:
    """The checkpoints of a model and method whose step is known, with the exam's headline."""
    points = []
    for row in run.rows_of(*version):
        if row.step is not None and exam.key in row.scores:
            compared = row.compare.get(exam.name)
            points.append(
                StepPoint(
                    row.step, row.scores[exam.key], row.interval(exam.key), compared.difference if compared else None,
                    compared is not None and compared.different, row.checkpoint,
                )
            )  # fmt: skip
    return sorted(points, key=lambda point: (point.step, point.checkpoint == "final"))


def falls(run: Run) -> Iterator[tuple[Version, ExamInfo, StepPoint | None]]:
    """(model, method), knowledge exam, and the checkpoint from which on it has fallen (None: it does not fall)."""
    for exam in run.exams:
        if exam.capability == KNOWLEDGE:
            for version in run.versions:
                points = exam_points(run, exam, version)
                if len(points) > 1:
                    yield version, exam, starts_to_fall(points, higher_is_better=exam.higher_is_better)


def steps_view(run: Run, marks: Mapping[Version, Mark]) -> list[Course]:
    """Every course; nothing unless checkpoints with steps were examined."""
    return list(courses(run, marks)) if run.stepped else []


def courses(run: Run, marks: Mapping[Version, Mark]) -> Iterator[Course]:
    """The exams, then the change exam's groups."""
    for exam in run.exams:
        series = {version: exam_points(run, exam, version) for version in run.versions}
        series = {version: points for version, points in series.items() if points}
        if series:
            yield _exam_course(run, exam, series, marks)
    for group in CHANGE_GROUPS:
        own = {version: _group_points(run.rows_of(*version), group) for version in run.versions}
        own = {version: points for version, points in own.items() if points}
        if own:
            scale = PanelScale((0.0, 25.0, 50.0, 75.0, 100.0), max(max(p.step for p in each) for each in own.values()))
            panels = tuple(
                _panel(run, v, points, scale, marks, panel_sizes(len(own)), say(f"group.{group}"))
                for v, points in own.items()
            )
            yield Course(say("steps.change", group=say(f"group.{group}")), group, panels, None)


def _exam_course(
    run: Run, exam: ExamInfo, series: Mapping[Version, list[StepPoint]], marks: Mapping[Version, Mark]
) -> Course:
    levels = {model: run.untouched(model) for model, _ in series}
    before = {model: one.scores[exam.key] for model, one in levels.items() if one and exam.key in one.scores}
    scale = _scale(series.values(), [*before.values(), *([] if exam.chance is None else [exam.chance])])
    sizes = panel_sizes(len(series))
    panels = tuple(
        _panel(run, version, points, scale, marks, sizes, say("verbatim", text=exam.name), exam, before.get(version[0]))
        for version, points in series.items()
    )
    name = say("verbatim", text=exam.name)
    return Course(
        name, exam.headline, panels, plain_table(run, exam.name), safe_name(exam.name), untouched=bool(before),
        chance=exam.chance is not None, knowledge=exam.capability == KNOWLEDGE, falls=any(p.falls for p in panels),
    )  # fmt: skip


def _scale(series: Iterable[Sequence[StepPoint]], levels: Iterable[float]) -> PanelScale:
    """Axes that hold every point, band and level."""
    points = [point for each in series for point in each]
    values = [*levels, *(p.value for p in points), *(end for p in points if p.ci95 for end in p.ci95)]
    return PanelScale(range_ticks(min(values), max(values)), max(max(p.step for p in points), 1))


def _panel(
    run: Run,
    version: Version,
    points: Sequence[StepPoint],
    scale: PanelScale,
    marks: Mapping[Version, Mark],
    sizes: tuple[Size, ...],
    name: Message,
    exam: ExamInfo | None = None,
    before: float | None = None,
) -> StepPanel:
    higher = exam.higher_is_better if exam else True
    top = best(points, higher_is_better=higher)
    fall = None
    remarks = []
    if top is not None and len(points) > 1:
        shown = numbers.fixed(top.value, numbers.digits([p.value for p in points]))
        value = shown if exam else numbers.percent(top.value / 100)
        remarks.append(say("steps.best", step=top.step, value=value))
    if exam is not None and exam.capability == KNOWLEDGE and len(points) > 1:
        fall = starts_to_fall(points, higher_is_better=higher)
        remarks.append(say("steps.falls", step=fall.step) if fall else say("steps.no_fall"))
    row = run.rows_of(*version)[-1]
    label = label_of(row, run)

    def draw(size: Size) -> Markup:
        return step_panel(
            points, scale, size, which=marks[version], label=say("steps.label", name=name, method=label), before=before,
            chance=exam.chance if exam else None, best=top if len(points) > 1 else None, fall=fall,
        )  # fmt: skip

    return StepPanel(label, mark_icon(marks[version]), drawn(sizes, draw), tuple(remarks), fall is not None)


def _group_points(rows: Sequence[Row], group: str) -> list[StepPoint]:
    """The mean of a group's scores per checkpoint, in per cent, with its interval over the row's cells."""
    points = []
    for row in rows:
        value = _group(row.scores, group)
        if row.step is None or value is None:
            continue
        each = [v for cell in row.cells if (v := _group(cell.scores, group)) is not None]
        counted = [numbers.probes(cell.n, group) for cell in row.cells]
        ci95 = share_over_changes(each, counted) if each and len(each) == len(counted) else row.ci95.get(group)
        shown = (100 * ci95[0], 100 * ci95[1]) if ci95 else None
        points.append(StepPoint(row.step, 100 * value, shown, checkpoint=row.checkpoint))
    return sorted(points, key=lambda point: (point.step, point.checkpoint == "final"))


def _group(scores: Mapping[str, float], group: str) -> float | None:
    own = [v for k, v in scores.items() if k == group or k.startswith(f"{group}.")]
    return numbers.mean(own) if own else None
