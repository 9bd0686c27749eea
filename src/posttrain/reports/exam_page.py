"""The sections about exams beyond the change exam: change by capability, and a table per exam."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from posttrain.exams.capabilities import CAPABILITIES, Drift, DriftScore
from posttrain.exams.results import ExamInfo
from posttrain.exams.scores import merged_notes
from posttrain.reports import numbers
from posttrain.reports.charts import FONT, Chart, Layers, Rows, Said, nominal, number
from posttrain.reports.examined import Compared
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.marks import Mark, label_of, mark_icon
from posttrain.reports.texts import Message, Words, breakable, say, say_if, say_known
from posttrain.reports.view import Entry, Head, Line, Panel, Section, Table, heads_of, numeric

__all__ = ["capabilities", "difference_text", "exam_section", "verdict_kind"]

MOST = 1.0
"""A relative change beyond this (100 %) is drawn at the edge with an arrow; tooltip and table give its number."""
LANE = 13
"""Height of one method's line in the plot of relative changes, in CSS pixels; a group's name has the height of two."""
CUT = re.compile(r"(\d+) of (\d+) samples have an answer cut at max_new_tokens")
"""A note about the answers of one model, which an exam has from the untouched model, and a cell when it differs."""
SCORES = 6
"""Number of scores next to the headline in an exam's table; all others are in the long list below it."""


def capability_name(group: str) -> Message:
    """Return a group's readable name, or its key when the catalogue has no name."""
    return say_known(f"capability.{group}", group)


# ---- capabilities ------------------------------------------------------------------------------------------------


def capabilities(run: Run, marks: Mapping[Version, Mark], *, with_change: bool) -> Section | None:
    """Return the section on the relative change of each capability group; None when results.json has none."""
    rows = [row for row in run.final if row.drift]
    every = dict.fromkeys(group for row in rows for group in row.drift)
    if not every:
        return None
    groups = [g for g in CAPABILITIES if g in every] + [g for g in every if g not in CAPABILITIES]
    named = {label_of(row.version, run): marks[row.version] for row in rows}
    changes = [
        (group, label_of(row.version, run), change)
        for group in groups for row in rows if group in row.drift and (change := row.drift[group].change) is not None
    ]  # fmt: skip
    beyond = any(abs(change) > MOST for _, _, change in changes)
    about = {"capabilities.about": True, "capabilities.exams_about": run.exams, "capabilities.beyond": beyond}
    told = {"capabilities.table_about": True, "capabilities.change_about": with_change, "capabilities.zero_about": True}
    heads = heads_of(say("capabilities.group"), (mark_icon(mark) + name for name, mark in named.items()))
    lines = tuple(line for group in groups for line in _group_lines(rows, group))
    title = say("capabilities.table")
    table = Table(title, (*heads, Head(say("capabilities.remark"), kind="text")), lines, "plain sums")
    chart = relative_changes(changes, named) if changes else None
    panels = (Panel(notes=say_if(about), chart=chart), Panel(title, notes=say_if(told), table=table, folded=True))
    return Section("capabilities", say("capabilities.title"), panels)


def relative_changes(changes: Sequence[tuple[str, str, float]], marks: Mapping[str, Mark]) -> Chart:
    """Draw (group, method, change) around zero: below the name of each capability group, a line for each method."""
    end = min(MOST, max([0.02, *(abs(change) for _, _, change in changes)]))
    high, lanes = LANE * (len(marks) + 2), {name: lane for lane, name in enumerate(marks)}
    on = Layers("name", marks)
    rows: Rows = [
        {"kind": kind, "group": Said(capability_name(group)), "name": name, "change": min(max(change, -end), end),
         "text": numbers.change_text(change), "zero": 0, "lane": lanes[name]}
        for group, name, change in changes
        for kind in ("change", *(["more"] if change > MOST else ["less"] if change < -MOST else []))
    ]  # fmt: skip
    groups = list(dict.fromkeys(row["group"] for row in rows))
    x = on.number("change", labelExpr=PER_CENT, orient="top", scale={"domain": [-end, end], "nice": True})
    axis = {"labelAlign": "left", "labelOffset": 11 - high / 2, "labelPadding": -2, "labelLimit": 400,
            "labelFontWeight": 600, "labelColor": "var(--ink)", "labelFontSize": FONT, "minExtent": 0}  # fmt: skip
    y = nominal("group", title=None, axis=axis, scale={"domain": groups, "padding": 2 * LANE / high})
    lane = {"field": "lane", "type": "ordinal", "sort": "ascending", "scale": {"domain": [*lanes.values()]}}
    at: dict[str, Any] = {"x": x, "y": y, "yOffset": lane}
    on.plain("zero", "rule", "zero", x=number("zero"))
    on.add("change", "rule", "interval", full=0.85, x2={"field": "zero"}, **at)
    tips = on.tips(name="scores.method", group="capabilities.group", text="capabilities.change")
    on.add("change", "point", "point", tooltip=tips, **at)
    for side, arrow in (("more", "\u25b8"), ("less", "\u25c2")):
        on.add(side, "text", side, text={"value": arrow}, **at)
    shown = [*rows, {"kind": "zero", "zero": 0}]
    return on.whole(shown, say("capabilities.title"), high * len(groups) + 2 * LANE, 0)


PER_CENT = "datum.value == 0 ? '0%' : format(datum.value, '+.0%')"
"""A Vega expression that writes an axis label in per cent with its sign."""


def _group_lines(rows: Sequence[Row], group: str) -> Iterator[Line]:
    """Yield the line of a group, then one for each of its scores, with the reason when a score has no change."""
    under = say_known(f"capabilities.{numbers.group_of(group)}", numbers.group_of(group))

    def line(name: Words, each: Sequence[Drift | DriftScore | None], remark: Words, kind: str = "") -> Line:
        entries = (numeric(one.change if one else None, numbers.change_text) for one in each)
        return Line((name,), (*entries, Entry(remark, kind="text")), kind=kind, under=under)

    own = [row.drift.get(group) for row in rows]
    directed = all(drift.directed for drift in own if drift)
    yield line(capability_name(group), own, "" if directed else say("capabilities.undirected"))
    for name in dict.fromkeys(one.score for drift in own if drift for one in drift.scores):
        each = [next((one for one in drift.scores if one.score == name), None) if drift else None for drift in own]
        reason: Words = ""
        if not any(one and one.change is not None for one in each):
            asked = any(one and one.before is not None for one in each)
            reason = say("capabilities.zero" if asked else "capabilities.not_asked")
        yield line(_code(name), each, reason, "behind")


def _code(name: str) -> Markup:
    return Markup("<code>{}</code>").format(breakable(name))


# ---- a table per exam ---------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """A row of an exam's table. kind: `untouched` (the untouched model), `chance` (guessing), `reference` (a reference
    row) or `model` (a model and a method); notes: those about its answers to the exam."""

    kind: str
    name: Words
    icon: Markup
    scores: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float]]
    compared: Compared | None = None
    notes: Sequence[str] = ()


def exam_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return the section with a table for each exam that has scores; None when no exam has any."""
    panels = [panel for exam in run.exams for panel in _exam_panels(run, exam, marks)]
    if not panels:
        return None
    compared = [one for row in run.final for one in row.compare.values()]
    about = {"exams.about": run.rows, "exams.about_before": not run.rows, "exams.verdicts_about": compared}
    about["exams.cells_about"] = any(one.cells > 1 for one in compared)
    return Section("exams", say("exams.title"), (Panel(notes=say_if(about)), *panels))


def _sources(run: Run, exam: ExamInfo, marks: Mapping[Version, Mark]) -> Iterator[_Source]:
    many = len(run.before) > 1
    for one in run.before:
        name: Words = say("exams.untouched_model", model=one.model) if many else say("exams.untouched")
        shown, told = one.model if run.alone else name, one.notes.get(exam.name, ())
        yield _Source("untouched", shown, Markup(), one.scores, one.ci95, notes=told)
    for other in run.results.reference:
        yield _Source("reference", other.name, Markup(), other.scores, {})
    if exam.chance is not None:
        yield _Source("chance", say("exams.chance"), Markup(), {exam.key: exam.chance}, {})
    for row in run.final:
        intervals = {key: pair for key in row.scores if (pair := row.interval(key)) is not None}
        icon = mark_icon(marks[row.version])
        notes = merged_notes([[note.removeprefix(f"{exam.name}: ") for note in cell.notes] for cell in row.cells])
        compared = row.compare.get(exam.name)
        yield _Source("model", label_of(row.version, run), icon, row.scores, intervals, compared, notes)


def _exam_panels(run: Run, exam: ExamInfo, marks: Mapping[Version, Mark]) -> Iterator[Panel]:
    sources = [s for s in _sources(run, exam, marks) if any(exam.score(key) is not None for key in s.scores)]
    measured = [s for s in sources if s.kind in ("model", "untouched")]
    every = [s for s in dict.fromkeys(exam.score(key) for one in measured for key in one.scores) if s is not None]
    if not every:
        return
    plain = [score for score in every if not re.search("[/~]", score) and score != exam.headline]
    columns = (exam.headline, *plain[:SCORES])
    counts = (*(one.n for one in run.before), *(cell.n for row in run.final for cell in row.cells))
    n = numbers.count_text([n[exam.key] for n in counts if exam.key in n], ",")
    about = (say("exams.measures", group=capability_name(exam.capability)),) if exam.capability else ()
    yield Panel(exam.name, small=n, notes=about, table=_exam_table(exam, columns, sources, measured))
    rest = [score for score in every if score not in columns]
    if rest:
        heads = heads_of(say("exams.score"), (source.name for source in sources))
        lines = (
            Line((_code(score),), tuple(_entry(s, exam, score, measured)._replace(below=()) for s in sources))
            for score in rest
        )
        yield Panel(say("exams.more", n=len(rest)), table=Table(say("scores.scroll"), heads, tuple(lines)), folded=True)
    cost = _cost(run, exam.name)
    notes: list[Words] = [note for note in exam.notes if not CUT.fullmatch(note)]
    for source in sources:
        key = "exams.cut_before" if source.kind == "untouched" and not run.alone else "exams.cut"
        cut = filter(None, map(CUT.fullmatch, source.notes))
        notes += [say(key, name=source.name, k=found[1], n=found[2]) for found in cut]
    yield Panel(items=tuple((note,) for note in notes), below=(cost,) if cost else (), kind="fine")
    if exam.signature:
        yield Panel(below=(say("verbatim", text=f"`{exam.signature}`"),), kind="fine")


def _exam_table(
    exam: ExamInfo, columns: Sequence[str], sources: Sequence[_Source], measured: Sequence[_Source]
) -> Table:
    """Return a table of the headline, its difference from the untouched model if tested, and the other scores."""
    verdicts = any(source.compared for source in sources)
    heads = list(heads_of(say("scores.method"), columns))
    heads[1] = heads[1]._replace(below="" if exam.higher_is_better else say("exams.lower"))
    lines = []
    for source in sources:
        entries = [_entry(source, exam, score, measured) for score in columns]
        if verdicts:
            entries.insert(1, _verdict(source.compared, exam) if source.compared else Entry(kind="verdict"))
        lines.append(Line((source.name,), tuple(entries), source.icon, kind=source.kind))
    if verdicts:
        heads.insert(2, Head(say("exams.difference"), kind="verdict"))
    return Table(say("scores.scroll"), tuple(heads), tuple(lines), "plain examined")


def _cost(run: Run, exam: str) -> Message | None:
    """Return the time and tokens that an exam took for the untouched models and all checkpoints; None if unknown."""
    costs = [*(one.cost for one in run.before), *(cell.cost for cell in run.cells)]
    each = [cost for cost in costs if f"exam_s.{exam}" in cost]
    if not each:
        return None
    time = numbers.duration(sum(cost[f"exam_s.{exam}"] for cost in each))
    tokens = sum(cost.get(f"exam_tokens.{exam}", 0.0) for cost in each)
    if not tokens:
        return say("exams.cost_time", n=len(each), time=time)
    return say("exams.cost", n=len(each), time=time, tokens=numbers.amount(tokens))


def _entry(source: _Source, exam: ExamInfo, score: str, measured: Sequence[_Source]) -> Entry:
    key = f"{exam.name}.{score}"
    write = partial(numbers.fixed, places=numbers.digits(s.scores[key] for s in measured if key in s.scores))
    between = ("\u2013".join(map(write, source.ci95[key])),) if key in source.ci95 else ()
    return numeric(source.scores.get(key), write, *between)


def difference_text(compared: Compared) -> str:
    """Return the difference as text, as tables and sentences print it."""
    return numbers.signed(compared.difference, numbers.digits((compared.before, compared.after)))


def verdict_kind(compared: Compared, exam: ExamInfo) -> str:
    """Return `worse` or `better` when the difference is real and not printed as 0, else `same`."""
    if not compared.different or not difference_text(compared).strip("0."):
        return "same"
    return "better" if (compared.difference > 0) is exam.higher_is_better else "worse"


SIGNS = {"worse": "▼", "better": "▲", "same": "≈"}


def _verdict(compared: Compared, exam: ExamInfo) -> Entry:
    """Return the difference from the untouched model with its verdict in words; below it the interval and p."""
    kind = verdict_kind(compared, exam)
    if compared.cells > 1 and 0 < compared.agree < compared.cells:
        word = say("exams.some", k=compared.agree, n=compared.cells)
    elif compared.too_few is not None:
        word = say("exams.few" if compared.n == compared.too_few else "exams.few_differ", n=compared.too_few)
    else:
        word = say("exams.tiny" if kind == "same" and compared.different else f"exams.{kind}")
    places = numbers.digits((compared.before, compared.after))
    sure = [" \u2026 ".join(numbers.signed(end, places) for end in compared.ci95)] if compared.ci95 else []
    sure += [] if compared.p_value is None else [numbers.p_text(compared.p_value)]
    other = compared.score and compared.score != exam.headline
    below: tuple[Words, ...] = ("; ".join(sure), *([say("exams.compared_on", score=compared.score)] if other else []))
    shown = say("exams.verdict", sign=SIGNS[kind], difference=difference_text(compared), word=word)
    return Entry(shown, tuple(words for words in below if words), f"verdict is-{kind}", value=compared.difference)
