"""The section on weights between the model before and the trained one: what is learned and what is kept on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from posttrain.reports import numbers
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.plots import Frame, text_of
from posttrain.reports.sizes import BESIDE, Size
from posttrain.reports.sizes import drawn as at_sizes
from posttrain.reports.svg import Mark, element, mark, mark_icon, marks_of, polyline, svg_text
from posttrain.reports.texts import Message, known, say

__all__ = ["MergePanel", "MergeView", "Way", "merge_view", "ways_of"]

MERGE = re.compile(r"^blend-(\d\.\d+)$")
CHANGE_SCORES = ("learned", "kept")
"""Of the change exam: the mean of reliability and generality, and one minus what was forgotten."""


class Way(NamedTuple):
    """A model and a method from before (0) to trained (1). scores: name -> (a, value), by a."""

    model: str
    method: str
    scores: Mapping[str, tuple[tuple[float, float], ...]]


class MergePanel(NamedTuple):
    """A method's plot, and its numbers: name of each score, its value at each a (text)."""

    label: str
    icon: Markup
    svg: Markup
    heads: tuple[str, ...]
    lines: tuple[tuple[Message, tuple[str, ...]], ...]


class MergeView(NamedTuple):
    """The section: panels, the scores with their marks, names of those that are no shares and in no plot."""

    panels: tuple[MergePanel, ...]
    scores: tuple[tuple[Message, Markup], ...]
    left_out: tuple[str, ...]


def place_of(row: Row) -> float | None:
    """Where a checkpoint lies between before and trained; None where it does not."""
    match = MERGE.match(row.checkpoint)
    return float(match[1]) if match else 1.0 if row.checkpoint == "final" else None


def ways_of(run: Run) -> list[Way]:
    """Every model and method with weights between; their scores with both ends, as far as they are known."""
    ways = []
    for model, method in run.versions:
        rows = [row for row in run.rows_of(model, method) if row.scores]
        if not any(MERGE.match(row.checkpoint) for row in rows):
            continue
        found: dict[str, list[tuple[float, float]]] = {}
        untouched = run.untouched(model)
        for exam in run.exams:
            if untouched is not None and exam.key in untouched.scores:
                found[exam.key] = [(0.0, untouched.scores[exam.key])]
        if any(numbers.forgotten(row.scores) is not None for row in rows):
            found["kept"] = [(0.0, 1.0)]  # its own answers are what is compared with
        for row in rows:
            a = place_of(row)
            lost = numbers.forgotten(row.scores)
            own = {"learned": numbers.learned(row.scores), "kept": None if lost is None else 1 - lost}
            own |= {exam.key: row.scores.get(exam.key) for exam in run.exams}
            for name, value in own.items():
                if a is not None and value is not None:
                    found.setdefault(name, []).append((a, value))
        order = [*CHANGE_SCORES, *(exam.key for exam in run.exams)]
        ways.append(Way(model, method, {name: tuple(sorted(found[name])) for name in order if name in found}))
    return ways


def merge_view(run: Run, marks: Mapping[Version, Mark]) -> MergeView | None:
    """The section; None where nothing was merged back."""
    ways = ways_of(run)
    if not ways:
        return None
    names = tuple(dict.fromkeys(name for way in ways for name in way.scores))
    drawn = tuple(n for n in names if all(0 <= value <= 1 for way in ways for _, value in way.scores.get(n, ())))
    keys: list[str | Version] = [*run.versions, *drawn]  # a score is never drawn as a method is
    own = marks_of(keys)
    return MergeView(
        tuple(_panel(run, way, drawn, own, marks) for way in ways),
        tuple((score_name(name), mark_icon(own[name])) for name in drawn),
        tuple(name for name in names if name not in drawn),
    )


def score_name(name: str) -> Message:
    """A score's name in words where it has one."""
    return say(f"merge.{name}") if known(f"merge.{name}") else say("verbatim", text=name)


def _panel(
    run: Run, way: Way, drawn: Sequence[str], own: Mapping[str | Version, Mark], marks: Mapping[Version, Mark]
) -> MergePanel:
    places = sorted({a for points in way.scores.values() for a, _ in points})
    lines = []
    for name, points in way.scores.items():
        digits = numbers.digits([value for _, value in points])
        at = dict(points)
        shown = tuple(numbers.fixed(at[a], digits) if a in at else numbers.MISSING for a in places)
        lines.append((score_name(name), shown))
    label = f"{way.method} ({way.model.rsplit('/', 1)[-1]})" if len(run.models) > 1 else way.method
    svg = at_sizes(BESIDE, lambda size: _plot(way, drawn, own, say("merge.label", method=label), size))
    return MergePanel(
        label, mark_icon(marks[way.model, way.method]), svg, tuple(f"{a:g}" for a in places), tuple(lines)
    )


def _plot(way: Way, drawn: Sequence[str], own: Mapping[str | Version, Mark], label: Message, size: Size) -> Markup:
    """Shares in per cent against a."""
    width, height, class_ = size
    frame = Frame(40, 12, width - 40 - 14, height - 12 - 46)
    parts: list[Markup] = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = frame.x(tick), frame.y(tick)
        parts.append(polyline([(frame.x(0), y), (frame.x(1), y)], class_="grid"))
        parts.append(svg_text(f"{100 * tick:.0f}", frame.x(0) - 6, y + 4, class_="tick", text_anchor="end"))
        parts.append(svg_text(f"{tick:g}", x, frame.y(0) + 17, class_="tick", text_anchor="middle"))
    parts.append(svg_text(say("merge.axis"), frame.x(0.5), frame.y(0) + 38, class_="axis", text_anchor="middle"))
    for name in drawn:
        points = way.scores.get(name, ())
        parts.append(polyline([(frame.x(a), frame.y(v)) for a, v in points], class_="thick", stroke=own[name].colour))
        for a, value in points:
            title = element("title", Markup.escape(f"{name} ({a:g}): {value:.4g}"))
            parts.append(element("g", title, mark(own[name], frame.x(a), frame.y(value), 4)))
    return element(
        "svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", class_=f"chart panel {class_}", role="img",
        aria_label=text_of(label),
    )  # fmt: skip
