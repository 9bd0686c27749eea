"""The section on weights between the model before and the trained one: what is learned and what is kept on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from posttrain.reports import numbers
from posttrain.reports.charts import SHARES, Chart, Drawn, Layers, Rows, Word
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.marks import Mark, label_of, mark_icon, marks_of
from posttrain.reports.texts import Message, known, say
from posttrain.reports.view import Line, Panel, Section, Table, heads_of, numeric

__all__ = ["merge_section", "ways_of"]

Way = Mapping[str, tuple[tuple[float, float], ...]]
"""Score -> (a, value) at each share a of the trained weights."""
MERGE = re.compile(r"^blend-(\d\.\d+)$")
CHANGE_SCORES = ("learned", "kept")
"""Of the change exam: the mean of reliability and generality, and one minus what was forgotten."""


def share_of(row: Row) -> float | None:
    """Return where a checkpoint lies between before (0) and trained (1); None where it does not."""
    match = MERGE.match(row.checkpoint)
    return float(match[1]) if match else 1.0 if row.checkpoint == "final" else None


def ways_of(run: Run) -> dict[Version, Way]:
    """Return the scores of every model and method with weights between, with both ends as far as they are known."""
    ways: dict[Version, Way] = {}
    for version in run.versions:
        rows = [row for row in run.rows_of(*version) if row.scores]
        if not any(MERGE.match(row.checkpoint) for row in rows):
            continue
        found: dict[str, list[tuple[float, float]]] = {}
        untouched = run.untouched(version[0])
        for exam in run.exams:
            if untouched is not None and exam.key in untouched.scores:
                found[exam.key] = [(0.0, untouched.scores[exam.key])]
        if any(numbers.forgotten(row.scores) is not None for row in rows):
            found["kept"] = [(0.0, 1.0)]  # its own answers are what is compared with
        for row in rows:
            a = share_of(row)
            lost = numbers.forgotten(row.scores)
            own = {"learned": numbers.learned(row.scores), "kept": None if lost is None else 1 - lost}
            own |= {exam.key: row.scores.get(exam.key) for exam in run.exams}
            for name, value in own.items():
                if a is not None and value is not None:
                    found.setdefault(name, []).append((a, value))
        order = [*CHANGE_SCORES, *(exam.key for exam in run.exams)]
        ways[version] = {name: tuple(sorted(found[name])) for name in order if name in found}
    return ways


def merge_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return a chart of all methods, then the numbers of each; None where nothing was merged back."""
    ways = ways_of(run)
    if not ways:
        return None
    names = tuple(dict.fromkeys(name for way in ways.values() for name in way))
    drawn = [n for n in names if all(0 <= value <= 1 for way in ways.values() for _, value in way.get(n, ()))]
    keys: list[str | Version] = [*run.versions, *drawn]  # a score is never drawn as a method is
    own = marks_of(keys)
    labels = {version: label_of(version, run) for version in ways}
    said = {name: score_name(name) for name in names}
    chart = (
        over_weights({labels[v]: way for v, way in ways.items()}, said, {name: own[name] for name in drawn})
        if drawn
        else None
    )
    left_out = [name for name in names if name not in drawn]
    about = [say("merge.about"), *([say("merge.left_out", names=", ".join(left_out))] if left_out else [])]
    panels = (Panel(labels[v], mark_icon(marks[v]), table=_table(way, said), kind="beside") for v, way in ways.items())
    return Section("merge", say("merge.title"), (Panel(notes=tuple(about), chart=chart), *panels))


def over_weights(ways: Mapping[str, Way], names: Mapping[str, Message], marks: Mapping[str, Mark]) -> Chart:
    """Draw shares in per cent from the weights before (0) to the trained ones (1), a panel per method."""

    def draw(word: Word) -> Drawn:
        on = Layers(word, "score", {word(names[key]): mark for key, mark in marks.items()})
        rows: Rows = [
            {"kind": "point", "panel": label, "score": word(names[key]), "a": a, "value": 100 * v, "text": f"{v:.4g}"}
            for label, way in ways.items() for key in marks for a, v in way.get(key, ())
        ]  # fmt: skip
        x = on.number("a", "merge.axis", values=[0, 0.25, 0.5, 0.75, 1], format=".2~f", scale={"domain": [0, 1]})
        y = on.number("value", values=SHARES, scale={"domain": [0, 100]})
        on.add("point", "line", "line", x=x, y=y)
        tips = on.tips(panel="scores.method", score="exams.score", a="merge.share", text="details.env_value")
        on.add("point", "point", "point", x=x, y=y, tooltip=tips)
        return on.panels(rows)

    return Chart(draw, say("merge.title"), tuple(marks), len(ways))


def score_name(name: str) -> Message:
    """Return a score's name in words where it has one."""
    return say(f"merge.{name}") if known(f"merge.{name}") else say("verbatim", text=name)


def _table(way: Way, names: Mapping[str, Message]) -> Table:
    shares = sorted({a for points in way.values() for a, _ in points})
    lines = []
    for name, points in way.items():
        write, at = partial(numbers.fixed, places=numbers.digits([value for _, value in points])), dict(points)
        entries = (numeric(at.get(a), write) for a in shares)
        lines.append(Line((names[name],), tuple(entries)))
    heads = heads_of(say("merge.share"), (f"{a:g}" for a in shares))
    return Table(say("scores.scroll"), heads, tuple(lines), "plain transfer")
