"""What the page shows of exams beyond the change exam: capabilities, a table per exam, forgetting, steps.

Everything here is put together from the pure parts (`examined`, `steps`, `quadrants`, `tables_out`) for the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from posttrain.exams.capabilities import CAPABILITIES
from posttrain.exams.results import ExamInfo
from posttrain.reports import numbers
from posttrain.reports.exam_plots import MOST, GroupChange, change_plot
from posttrain.reports.examined import Compared
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.sizes import WHOLE
from posttrain.reports.svg import Mark, mark_icon
from posttrain.reports.texts import Message, known, say

__all__ = [
    "Capabilities",
    "ExamView",
    "Quadrants",
    "capabilities",
    "capability_name",
    "difference_text",
    "exam_views",
    "forgetting",
]

SCORES = 6
"""Scores beside the headline that an exam's table holds; every other one is in the long list below it."""


def capability_name(group: str) -> Message:
    """A group's readable name, its key where the catalogue has none."""
    return say(f"capability.{group}") if known(f"capability.{group}") else say("verbatim", text=group)


def label_of(row: Row, run: Run) -> str:
    """The method, with the model where there are several; the model alone where nothing was trained."""
    if run.alone:
        return row.model
    return f"{row.method} ({row.model.rsplit('/', 1)[-1]})" if len(run.models) > 1 else row.method


# ---- capabilities ------------------------------------------------------------------------------------------------


class GroupLine(NamedTuple):
    """A capability group's line: the changes of the methods as text; directed: whether more of it is better."""

    name: Message
    changes: tuple[str, ...]
    directed: bool
    scores: tuple[ScoreLine, ...]


class ScoreLine(NamedTuple):
    """A score behind a group: its changes, and why it has none."""

    score: str
    changes: tuple[str, ...]
    reason: Message | None


class Family(NamedTuple):
    """What the model can do, will do, or how it does it."""

    key: str
    lines: tuple[GroupLine, ...]


class Capabilities(NamedTuple):
    """The summary: plots (wide, narrow), the table's heads and lines; beyond: a change is larger than the plot."""

    plots: tuple[Markup, ...]
    heads: tuple[tuple[Markup, str], ...]
    families: tuple[Family, ...]
    beyond: bool


def capabilities(run: Run, marks: Mapping[Version, Mark]) -> Capabilities | None:
    """Relative change per capability group of every model and method; None where results.json has none."""
    rows = [row for row in run.final if row.drift]
    every = dict.fromkeys(group for row in rows for group in row.drift)
    if not every:
        return None
    groups = [g for g in CAPABILITIES if g in every] + [g for g in every if g not in CAPABILITIES]
    changes = [GroupChange(capability_name(g), tuple(_change(row, g) for row in rows)) for g in groups]
    drawn = [group for group in changes if any(change is not None for change in group.changes)]
    which, labels = [marks[row.version] for row in rows], [label_of(row, run) for row in rows]
    plots = tuple(change_plot(drawn, which, labels, size) for size in WHOLE)
    families = tuple(
        Family(key, tuple(_group_line(rows, g) for g in groups if g.partition(".")[0] == key))
        for key in dict.fromkeys(g.partition(".")[0] for g in groups)
    )
    beyond = any(abs(change) > MOST for group in drawn for change in group.changes if change is not None)
    heads = tuple(zip(map(mark_icon, which), labels, strict=True))
    return Capabilities(plots if drawn else (), heads, families, beyond)


def _group_line(rows: Sequence[Row], group: str) -> GroupLine:
    own = [row.drift[group] for row in rows if group in row.drift]
    names = dict.fromkeys(one.score for drift in own for one in drift.scores)
    lines = []
    for name in names:
        each = [next((s for s in row.drift[group].scores if s.score == name), None) if group in row.drift else None
                for row in rows]  # fmt: skip
        reason = None
        if not any(one is not None and one.change is not None for one in each):
            asked = any(one is not None and one.before is not None for one in each)
            reason = say("capabilities.zero") if asked else say("capabilities.not_asked")
        lines.append(ScoreLine(name, tuple(_change_text(one.change if one else None) for one in each), reason))
    shown = tuple(_change_text(_change(row, group)) for row in rows)
    return GroupLine(capability_name(group), shown, all(drift.directed for drift in own), tuple(lines))


def _change(row: Row, group: str) -> float | None:
    return row.drift[group].change if group in row.drift else None


def _change_text(change: float | None) -> str:
    return numbers.MISSING if change is None else numbers.change_text(change)


# ---- a table per exam ---------------------------------------------------------------------------------------------


class ScoreCell(NamedTuple):
    """A score and its 95 % interval as text."""

    text: str
    interval: str = ""


class Verdict(NamedTuple):
    """A difference from the untouched model. kind: worse, better or same."""

    kind: str
    difference: str
    interval: str
    p: str
    word: Message
    note: Message | None = None


class ExamLine(NamedTuple):
    """A row: the untouched model, guessing, a reference row, or a model and a method."""

    kind: str
    name: Message
    icon: Markup
    cells: tuple[ScoreCell, ...]
    verdict: Verdict | None = None


class ExamView(NamedTuple):
    """An exam's part of the page. more: (score, one text per line) of the scores that the table leaves out; verdicts:
    whether there is a column of differences; many: whether some difference is of several cells."""

    info: ExamInfo
    capability: Message | None
    heads: tuple[str, ...]
    lines: tuple[ExamLine, ...]
    n: str
    more: tuple[tuple[str, tuple[str, ...]], ...]
    more_heads: tuple[Message, ...]
    cost: Message | None
    verdicts: bool = True
    many: bool = False


def exam_views(run: Run, marks: Mapping[Version, Mark]) -> list[ExamView]:
    """One view per exam that anything was scored on."""
    return [view for exam in run.exams if (view := _view(run, exam, marks)) is not None]


class _Source(NamedTuple):
    kind: str
    name: Message
    icon: Markup
    scores: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float]]
    compared: Compared | None = None


def _sources(run: Run, exam: ExamInfo, marks: Mapping[Version, Mark]) -> Iterator[_Source]:
    many = len(run.before) > 1
    for one in run.before:
        name = say("exams.untouched_model", model=one.model) if many else say("exams.untouched")
        if run.alone:
            name = say("verbatim", text=one.model)
        yield _Source("untouched", name, Markup(), one.scores, one.ci95)
    for other in run.reference:
        yield _Source("reference", say("verbatim", text=other.name), Markup(), other.scores, {})
    if exam.chance is not None:
        yield _Source("chance", say("exams.chance"), Markup(), {exam.key: exam.chance}, {})
    for row in run.final:
        name = say("verbatim", text=label_of(row, run))
        icon = mark_icon(marks[row.version])
        intervals = {key: pair for key in row.scores if (pair := row.interval(key)) is not None}
        yield _Source("model", name, icon, row.scores, intervals, row.compare.get(exam.name))


def _view(run: Run, exam: ExamInfo, marks: Mapping[Version, Mark]) -> ExamView | None:
    sources = [s for s in _sources(run, exam, marks) if any(exam.score(key) is not None for key in s.scores)]
    measured = [s for s in sources if s.kind in ("model", "untouched")]
    every = [s for s in dict.fromkeys(exam.score(key) for one in measured for key in one.scores) if s is not None]
    if not every:
        return None
    plain = [s for s in every if not re.search("[/~]", s) and s != exam.headline]
    heads = (exam.headline, *plain[:SCORES])
    rest = [score for score in every if score not in heads]
    lines = tuple(
        ExamLine(s.kind, s.name, s.icon, tuple(_cell(s, exam, score, measured) for score in heads),
                 _verdict(s.compared, exam) if s.compared else None)
        for s in sources
    )  # fmt: skip
    more = tuple((score, tuple(_cell(s, exam, score, measured).text for s in sources)) for score in rest)
    every_n = [*(one.n for one in run.before), *(cell.n for row in run.final for cell in row.cells)]
    counts = sorted({n[exam.key] for n in every_n if exam.key in n})
    n = "" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}\u2013{counts[-1]:,}"
    capability = capability_name(exam.capability) if exam.capability else None
    names = tuple(s.name for s in sources)
    verdicts = any(line.verdict for line in lines)
    many = any(s.compared is not None and s.compared.cells > 1 for s in sources)
    return ExamView(exam, capability, heads, lines, n, more, names, _cost(run, exam.name), verdicts, many)


def _cost(run: Run, exam: str) -> Message | None:
    """Time and tokens of an exam over the untouched models and every checkpoint."""
    costs = [*(one.cost for one in run.before), *(cell.cost for cell in run.cells)]
    each = [cost for cost in costs if f"exam_s.{exam}" in cost]
    if not each:
        return None
    time = numbers.duration(sum(cost[f"exam_s.{exam}"] for cost in each))
    tokens = sum(cost.get(f"exam_tokens.{exam}", 0.0) for cost in each)
    if not tokens:
        return say("exams.cost_time", n=len(each), time=time)
    return say("exams.cost", n=len(each), time=time, tokens=numbers.amount(tokens))


def _digits(sources: Sequence[_Source], key: str) -> int:
    return numbers.digits(s.scores[key] for s in sources if key in s.scores)


def _cell(source: _Source, exam: ExamInfo, score: str, measured: Sequence[_Source]) -> ScoreCell:
    key = f"{exam.name}.{score}"
    if key not in source.scores:
        return ScoreCell(numbers.MISSING)
    places = _digits(measured, key)
    interval = source.ci95.get(key)
    between = "\u2013".join(numbers.fixed(end, places) for end in interval) if interval else ""
    return ScoreCell(numbers.fixed(source.scores[key], places), between)


def difference_text(compared: Compared) -> str:
    """The difference as tables and sentences print it."""
    return numbers.signed(compared.difference, numbers.digits((compared.before, compared.after)))


def verdict_kind(compared: Compared, exam: ExamInfo) -> str:
    """worse or better when the difference is one and can be seen in the number printed, else same: nothing is better
    by 0.00."""
    if not compared.different or not difference_text(compared).strip("0."):
        return "same"
    return "better" if (compared.difference > 0) is exam.higher_is_better else "worse"


def _verdict(compared: Compared, exam: ExamInfo) -> Verdict:
    places = numbers.digits((compared.before, compared.after))
    kind = verdict_kind(compared, exam)
    tiny = kind == "same" and compared.different
    if compared.cells > 1 and 0 < compared.agree < compared.cells:
        word = say("exams.some", k=compared.agree, n=compared.cells)
    elif compared.too_few is not None:
        word = say("exams.few" if compared.n == compared.too_few else "exams.few_differ", n=compared.too_few)
    else:
        word = say("exams.tiny" if tiny else f"exams.{kind}")
    interval = ""
    if compared.ci95:
        interval = " \u2026 ".join(numbers.signed(end, places) for end in compared.ci95)
    p = "" if compared.p_value is None else numbers.p_text(compared.p_value)
    other = compared.score and compared.score != exam.headline
    note = say("exams.compared_on", score=compared.score) if other else None
    return Verdict(kind, difference_text(compared), interval, p, word, note)


# ---- forgetting, sample by sample --------------------------------------------------------------------------------


class QuadrantLine(NamedTuple):
    """A model and a method: counts and shares (per cent) of the quadrants, and the chance-adjusted shares."""

    icon: Markup
    label: str
    counts: tuple[str, ...]
    shares: tuple[float, ...]
    percents: tuple[str, ...]
    forgotten: str
    gained: str


class Quadrants(NamedTuple):
    """An exam's quadrants."""

    info: ExamInfo
    lines: tuple[QuadrantLine, ...]
    adjusted: bool


def forgetting(run: Run, marks: Mapping[Version, Mark]) -> list[Quadrants]:
    """The exams whose answers are right or wrong, with a line per model and method."""
    found = []
    for exam in run.exams:
        lines = []
        for row in run.final:
            compared = row.compare.get(exam.name)
            shares = compared.shares() if compared else None
            if compared is None or compared.counts is None or shares is None:
                continue
            adjusted = [
                numbers.MISSING if v is None else numbers.percent(v).replace("-", "\u2212") for v in compared.adjusted
            ]
            lines.append(
                QuadrantLine(
                    mark_icon(marks[row.version]), label_of(row, run), tuple(f"{c:,}" for c in compared.counts),
                    tuple(round(100 * share, 2) for share in shares), tuple(map(numbers.percent, shares)), *adjusted,
                )
            )  # fmt: skip
        if lines:
            known_chance = any(line.forgotten != numbers.MISSING for line in lines)
            found.append(Quadrants(exam, tuple(lines), known_chance))
    return found
