"""The section over training steps: for every exam and group of the change exam, a panel per model and method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from posttrain.exams.results import ExamInfo
from posttrain.exams.statistics import share_over_changes
from posttrain.models.disk import safe_name
from posttrain.reports import numbers
from posttrain.reports.charts import Chart, Layers, Rows, span
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.marks import Mark, label_of
from posttrain.reports.tables_out import plain_table, pretty
from posttrain.reports.texts import Message, say, say_if
from posttrain.reports.view import Panel, Section

__all__ = ["KNOWLEDGE", "StepPoint", "best", "exam_points", "falls", "starts_to_fall", "steps_section"]

KNOWLEDGE = "can.knowledge"
"""For exams that measure this capability by their headline, the page says where general knowledge starts to fall."""

CHANGE_GROUPS: tuple[str, ...] = ("reliability", "generality", "locality")
"""The groups of the change exam's scores that have a chart over steps."""


class StepPoint(NamedTuple):
    """A checkpoint in a chart over training steps.

    value: its score, mostly an exam's headline; ci95: the interval of the score; difference: from the untouched model,
    None when they were not compared; different: whether this difference is real.
    """

    step: int
    value: float
    ci95: tuple[float, float] | None = None
    difference: float | None = None
    different: bool = False
    checkpoint: str = ""


def _in_order(point: StepPoint) -> tuple[int, bool]:
    """Return a sort key: by step, and with `final` last among equal steps."""
    return point.step, point.checkpoint == "final"


def best(points: Sequence[StepPoint], *, higher_is_better: bool = True) -> StepPoint | None:
    """Return the checkpoint with the best value, among equals the earliest; None for fewer than two checkpoints."""
    sign = -1.0 if higher_is_better else 1.0
    return min(points, key=lambda point: (sign * point.value, point.step)) if len(points) > 1 else None


def starts_to_fall(points: Sequence[StepPoint], *, higher_is_better: bool = True) -> StepPoint | None:
    """Return the first checkpoint from which on all are worse than the untouched model by a real difference. None when
    there is no such checkpoint: a score that recovers, or that may have fallen by chance, does not count.
    """
    first = None
    for point in sorted(points, key=lambda point: -point.step):
        worse = point.difference is not None and (point.difference < 0) is higher_is_better and point.difference != 0
        if not (worse and point.different):
            break
        first = point
    return first


def exam_points(run: Run, exam: ExamInfo, version: Version) -> list[StepPoint]:
    """Return the checkpoints of a model and method with known step and with the exam's headline, by step."""
    points = []
    for row in run.rows_of(*version):
        if row.step is not None and exam.key in row.scores:
            one = row.compare.get(exam.name)
            point = StepPoint(row.step, row.scores[exam.key], row.interval(exam.key), checkpoint=row.checkpoint)
            points.append(point._replace(difference=one.difference, different=one.different) if one else point)
    return sorted(points, key=_in_order)


def falls(run: Run) -> Iterator[tuple[Version, ExamInfo, StepPoint | None]]:
    """Yield ((model, method), exam of knowledge, checkpoint from which on its headline has fallen, or None)."""
    for exam in run.exams:
        if exam.capability == KNOWLEDGE:
            for version in run.versions:
                points = exam_points(run, exam, version)
                if len(points) > 1:
                    yield version, exam, starts_to_fall(points, higher_is_better=exam.higher_is_better)


class Series(NamedTuple):
    """A score of a method over steps. before: the untouched model's score; best: the best checkpoint; fall: the
    checkpoint from which on the score has fallen; chance: the score of guessing.
    """

    label: str
    mark: Mark
    points: Sequence[StepPoint]
    before: float | None = None
    best: StepPoint | None = None
    fall: StepPoint | None = None
    chance: float | None = None


def steps_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return a section with a chart for each exam and each of `CHANGE_GROUPS`. None unless several checkpoints with
    known steps were examined.
    """
    if not run.stepped:
        return None
    panels: list[Panel] = []
    signs = set[str]()
    for exam in run.exams:
        series = [_series(run, exam, version, marks) for version in run.versions if exam_points(run, exam, version)]
        if series:
            knows = exam.capability == KNOWLEDGE
            remarks = [_remarks(one, knows) for one in series if len(one.points) > 1]
            signs |= {row["kind"] for one in series for row in _rows(one)}
            chart = over_steps(say("verbatim", text=exam.name), series)
            panels.append(Panel(exam.name, small=pretty(exam.headline), chart=chart, items=tuple(remarks)))
            files = say("steps.files", stem=safe_name(exam.name))
            panels.append(Panel(say("steps.table"), table=plain_table(run, exam.name), below=(files,), folded=True))
    for group in CHANGE_GROUPS:
        each = [(v, points) for v in run.versions if (points := _group_points(run.rows_of(*v), group))]
        series = [Series(label_of(v, run), marks[v], points, best=best(points)) for v, points in each]
        if series:
            name = say(f"group.{group}")
            signs.add("ring")
            items = tuple(_remarks(one, share=True) for one in series if one.best)
            panels.append(Panel(say("steps.change", group=name), chart=over_steps(name, series), items=items))
    knowledge = any(exam.capability == KNOWLEDGE for exam in run.exams)
    about = say_if({"steps.about": True, "steps.knowledge_about": knowledge})
    keys = tuple((kind, say(words)) for kind, words in SIGNS.items() if kind in signs)
    return Section("steps", say("steps.title"), (Panel(notes=about, keys=keys), *panels))


SIGNS = {
    "untouched": "exams.untouched", "chance": "exams.chance", "ring": "steps.best_mark", "falls": "steps.falls_mark",
}  # fmt: skip
"""Kind of rows that the legend explains -> key of its explanation."""


def _series(run: Run, exam: ExamInfo, version: Version, marks: Mapping[Version, Mark]) -> Series:
    points, untouched = exam_points(run, exam, version), run.untouched(version[0])
    before = untouched.scores.get(exam.key) if untouched else None
    fall = None
    if exam.capability == KNOWLEDGE and len(points) > 1:
        fall = starts_to_fall(points, higher_is_better=exam.higher_is_better)
    top = best(points, higher_is_better=exam.higher_is_better)
    return Series(label_of(version, run), marks[version], points, before, top, fall, exam.chance)


def _remarks(one: Series, knows: bool = False, *, share: bool = False) -> tuple[Message, ...]:
    """Return which checkpoint of a method is best and, if `knows`, from which step on its knowledge has fallen. share:
    the values are shares in per cent."""
    said = [say("verbatim", text=f"`{one.label}`:")]
    if one.best:
        places = numbers.digits(point.value for point in one.points)
        value = numbers.percent(one.best.value / 100) if share else numbers.fixed(one.best.value, places)
        said.append(say("steps.best", step=one.best.step, value=value))
    if knows:
        said.append(say("steps.falls", step=one.fall.step) if one.fall else say("steps.no_fall"))
    return tuple(said)


def over_steps(name: Message, series: Sequence[Series]) -> Chart:
    """Draw a score over steps with its 95 % band, with a panel for each method.

    A dashed line is the level of the untouched model, a dotted line the level of guessing. A ring marks the best
    checkpoint, and a vertical line the step at which the fall begins.
    """
    rows = [{"panel": one.label, **row} for one in series for row in _rows(one)]
    values = [row[key] for row in rows for key in ("value", "low", "high") if key in row]
    on = Layers("panel", {one.label: one.mark for one in series}, legend=False)
    x = on.number("step", "plot.step", grid=False, scale=span((row["step"] for row in rows if "step" in row), 0))
    y = on.number("value", scale=span(values))
    on.add("point", "area", "band", full=0.18, x=x, y=on.number("low", scale=span(values)), y2={"field": "high"})
    for level in ("untouched", "chance"):
        on.plain(level, "rule", level, y=y)
    on.add("lead", "line", "lead", full=0.5, x=x, y=y)
    on.plain("falls", "rule", "falls", x=x)
    on.add("point", "line", "line", x=x, y=y)
    on.plain("start", "point", "start", x=x, y=y)
    on.plain("ring", "point", "ring", x=x, y=y)
    tips = on.tips(panel="scores.method", checkpoint="answers.checkpoint", step="plot.step", text="exams.score")
    on.add("point", "point", "point", x=x, y=y, tooltip=tips)
    return on.panels(rows, say("steps.label", name=name))


def _rows(one: Series) -> Rows:
    """Return the rows of the chart for one series; `kind` names the layers that draw a row."""
    own: Rows = [
        {"kind": "point", "step": p.step, "value": p.value, "low": p.ci95[0] if p.ci95 else p.value,
         "high": p.ci95[1] if p.ci95 else p.value, "checkpoint": p.checkpoint, "text": f"{p.value:.4g}"}
        for p in one.points
    ]  # fmt: skip
    if one.before is not None:
        start = {"step": 0, "value": one.before}
        own += [{"kind": "untouched", "value": one.before}, {"kind": "start", **start}, {"kind": "lead", **start}]
        own += [{"kind": "lead", "step": p.step, "value": p.value} for p in one.points[:1]]
    own += [{"kind": "chance", "value": one.chance}] if one.chance is not None else []
    own += [{"kind": "ring", "step": one.best.step, "value": one.best.value}] if one.best else []
    return own + ([{"kind": "falls", "step": one.fall.step}] if one.fall else [])


def _group_points(rows: Sequence[Row], group: str) -> list[StepPoint]:
    """Return the mean of a group's scores at each checkpoint, in per cent, with its interval over the row's cells."""
    points = []
    for row in rows:
        value = numbers.group_mean(row.scores, group)
        if row.step is None or value is None:
            continue
        each = [v for cell in row.cells if (v := numbers.group_mean(cell.scores, group)) is not None]
        counted = [numbers.probes(cell.n, group) for cell in row.cells]
        ci95 = share_over_changes(each, counted) if each and len(each) == len(counted) else row.ci95.get(group)
        shown = (100 * ci95[0], 100 * ci95[1]) if ci95 else None
        points.append(StepPoint(row.step, 100 * value, shown, checkpoint=row.checkpoint))
    return sorted(points, key=_in_order)
