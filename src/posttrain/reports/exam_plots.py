"""Plots of exams: relative change by capability as lollipops, and a headline over training steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from posttrain.reports import numbers
from posttrain.reports.plots import FONT, Frame, nice_ticks, text_of
from posttrain.reports.sizes import Size
from posttrain.reports.steps import StepPoint
from posttrain.reports.svg import Mark, Point, element, mark, polyline, svg_text
from posttrain.reports.texts import Message, say

__all__ = ["GroupChange", "PanelScale", "change_plot", "step_panel"]

MOST = 1.0
"""Relative changes beyond ±100 % are drawn at the edge, with an arrow; their number is in the table."""

LANE = 13.0
"""Height of one method's line in the capability plot."""


class GroupChange(NamedTuple):
    """A capability group: its name, and the change of each method (None: not known) in the order of the marks."""

    name: Message
    changes: tuple[float | None, ...]


def change_plot(groups: Sequence[GroupChange], marks: Sequence[Mark], labels: Sequence[str], size: Size) -> Markup:
    """Relative changes around zero, as high as it needs to be. A narrow one has the group's name above its lines, a
    wide one to their left."""
    width, class_ = size.width, size.class_
    above = FONT + 7 if "narrow" in class_ else 0.0
    left = 18.0 if above else 190.0
    row = above + LANE * len(marks) + 10
    frame = Frame(left, 26, width - left - 18, row * len(groups))
    known = [abs(c) for group in groups for c in group.changes if c is not None]
    end = min(MOST, max([0.02, *known]))
    ticks = nice_ticks(end, 2)
    end = ticks[-1] if ticks[-1] >= 0.999 * end else ticks[-1] + ticks[1]
    parts: list[Markup] = []

    def x(change: float) -> float:
        return frame.x((min(max(change / end, -1), 1) + 1) / 2)

    for tick in nice_ticks(end, 2):
        for value in {tick, -tick}:
            parts.append(polyline([(x(value), frame.top), (x(value), frame.y(0))], class_="grid"))
            anchor = "end" if value == end else "start" if above and value == -end else "middle"
            text = numbers.change_text(value).replace("\u00a0", "")
            parts.append(svg_text(text, x(value), 15, class_="tick", text_anchor=anchor))
    parts.append(polyline([(x(0), frame.top), (x(0), frame.y(0))], class_="zero"))
    for i, group in enumerate(groups):
        top = frame.top + i * row
        if above:
            parts.append(svg_text(group.name, 2, top + FONT + 3, class_="label"))
        else:
            parts.append(svg_text(group.name, left - 12, top + row / 2 + 4, text_anchor="end"))
        if i:
            parts.append(polyline([(0, top), (width, top)], class_="grid"))
        for lane, (change, which, label) in enumerate(zip(group.changes, marks, labels, strict=True)):
            if change is not None:
                y = top + above + 5 + LANE * (lane + 0.5)
                parts.append(_lollipop(x(0), x(change), y, which, f"{label}: {numbers.change_text(change)}"))
                if abs(change) > end * 1.001:
                    arrow, shift = ("\u25b8", 11.0) if change > 0 else ("\u25c2", -11.0)
                    parts.append(svg_text(arrow, x(change) + shift, y + 4, class_="tick", text_anchor="middle"))
    height = frame.y(0) + 6
    return element(
        "svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", width=width, height=height,
        class_=f"chart changes {class_}", role="img", aria_labelledby="capabilities-title",
    )  # fmt: skip


def _lollipop(zero: float, end: float, y: float, which: Mark, title: str) -> Markup:
    stick = polyline([(zero, y), (end, y)], class_="stick", stroke=which.colour)
    return element("g", element("title", Markup.escape(title)), stick, mark(which, end, y, 4.6))


class PanelScale(NamedTuple):
    """The axes of an exam's panels, the same in all of them: y's round numbers, the last step."""

    ticks: Sequence[float]
    steps: float

    def y(self, value: float) -> float:
        """0..1 between the first and the last tick."""
        low, high = self.ticks[0], self.ticks[-1]
        return min(max((value - low) / (high - low), 0.0), 1.0)


def step_panel(
    points: Sequence[StepPoint],
    scale: PanelScale,
    size: Size,
    *,
    which: Mark,
    label: Message,
    before: float | None = None,
    chance: float | None = None,
    best: StepPoint | None = None,
    fall: StepPoint | None = None,
) -> Markup:
    """A headline over steps with its 95 % band; dashed the untouched model's level, dotted that of guessing; a ring
    round the best checkpoint, a line where the fall begins."""
    width, height, class_ = size
    frame = Frame(52, 12, width - 52 - 12, height - 12 - 34)

    def at(step: float, value: float) -> Point:
        return frame.x(step / scale.steps), frame.y(scale.y(value))

    parts = list(_grid(frame, scale))
    for level, kind in ((before, "untouched"), (chance, "chance")):
        if level is not None and scale.ticks[0] <= level <= scale.ticks[-1]:
            parts.append(polyline([at(0, level), at(scale.steps, level)], class_=kind))
    band = [(p.step, p.ci95) for p in points if p.ci95 is not None]
    if len(band) > 1:
        ring = [at(s, ci[1]) for s, ci in band] + [at(s, ci[0]) for s, ci in reversed(band)]
        parts.append(element("polygon", points=_path(ring), fill=which.colour, class_="band"))
    elif band:
        step, ci = band[0]
        parts.append(polyline([at(step, ci[0]), at(step, ci[1])], class_="ci", stroke=which.colour))
    if fall is not None:
        x = at(fall.step, scale.ticks[0])[0]
        parts.append(polyline([(x, frame.y(0)), (x, frame.y(1))], class_="falls"))
        parts.append(svg_text("\u25bc", x, frame.y(1) + 1, class_="falls-sign", text_anchor="middle"))
    start = [at(0, before)] if before is not None else []
    if before is not None and points:
        parts.append(polyline([*start, at(points[0].step, points[0].value)], class_="lead-in", stroke=which.colour))
        parts.append(element("circle", cx=start[0][0], cy=start[0][1], r=3.5, class_="untouched-dot"))
    parts.append(polyline([at(p.step, p.value) for p in points], class_="thick", stroke=which.colour))
    for point in points:
        x, y = at(point.step, point.value)
        title = element("title", Markup.escape(f"{point.checkpoint} ({point.step}): {point.value:.4g}"))
        round_it = [element("circle", cx=x, cy=y, r=8.0, class_="best-ring")] if point is best else []
        parts.append(element("g", title, *round_it, mark(which, x, y, 4)))
    return element(
        "svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", class_=f"chart panel {class_}", role="img",
        aria_label=text_of(label),
    )  # fmt: skip


def _grid(frame: Frame, scale: PanelScale) -> Iterator[Markup]:
    places = next(d for d in range(6) if all(abs(t - round(t, d)) < 1e-9 for t in scale.ticks) or d == 5)
    for value in scale.ticks:
        y = frame.y(scale.y(value))
        yield polyline([(frame.x(0), y), (frame.x(1), y)], class_="grid")
        yield svg_text(numbers.fixed(value, places), frame.x(0) - 6, y + 4, class_="tick", text_anchor="end")
    for value in nice_ticks(scale.steps):
        x = frame.x(value / scale.steps)
        yield svg_text(f"{value:g}", x, frame.y(0) + 16, class_="tick", text_anchor="middle")
    yield svg_text(say("plot.step"), frame.x(1), frame.y(0) + 31, class_="axis", text_anchor="end")


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
