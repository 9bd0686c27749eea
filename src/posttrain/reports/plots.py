"""The two kinds of plot: learned against forgotten, and the loss curves of each method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from markupsafe import Markup

from posttrain.reports import numbers
from posttrain.reports.sizes import Size
from posttrain.reports.svg import Mark, Point, element, mark, polyline, shortened, svg_text, text_width
from posttrain.reports.texts import LANGUAGES, Message, say, text

__all__ = ["Box", "Curve", "Frame", "Spot", "loss_panel", "place_labels", "scatter"]

FONT = 13.0
"""Font size of plots in SVG units; they are drawn at their own size, so a unit is a CSS pixel."""


class Spot(NamedTuple):
    """A method in the scatter plot: its mean with intervals, and one dot per change. All in 0..1."""

    label: str
    mark: Mark
    x: float
    y: float
    x_ci: tuple[float, float]
    y_ci: tuple[float, float]
    dots: tuple[tuple[float, float, str], ...]  # (x, y, what it is)


class Curve(NamedTuple):
    """One loss curve: (step, nats per token) of a cell."""

    points: tuple[Point, ...]


class Frame(NamedTuple):
    """The plotting area inside a picture, in SVG units."""

    left: float
    top: float
    width: float
    height: float

    def x(self, share: float) -> float:
        """Where 0..1 lies, left to right."""
        return self.left + share * self.width

    def y(self, share: float) -> float:
        """Where 0..1 lies, bottom to top."""
        return self.top + (1 - share) * self.height


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)


def scatter(spots: Sequence[Spot], size: Size) -> Markup:
    """Learned (up) against forgotten (right); the best place is the top left corner."""
    width, height, class_ = size
    frame = Frame(52, 14, width - 52 - 14, height - 14 - 46)
    parts = [*_axes(frame)]
    parts.append(svg_text(say("plot.ideal"), frame.x(0.015), frame.y(1) + 17, class_="ideal"))
    for spot in spots:
        for x, y, what in spot.dots:
            title = element("title", Markup.escape(what))
            dot = mark(spot.mark, frame.x(x), frame.y(y), 2.6)
            parts.append(element("g", title, dot, class_="dot"))
    for spot in spots:
        x, y = frame.x(spot.x), frame.y(spot.y)
        across = polyline([(frame.x(spot.x_ci[0]), y), (frame.x(spot.x_ci[1]), y)])
        up = polyline([(x, frame.y(spot.y_ci[0])), (x, frame.y(spot.y_ci[1]))])
        parts.append(element("g", across, up, class_="ci", stroke=spot.mark.colour))
    for spot in spots:
        title = element("title", Markup.escape(_spot_title(spot)))
        parts.append(element("g", title, mark(spot.mark, frame.x(spot.x), frame.y(spot.y), 7), class_="mean"))
    anchors = [(frame.x(s.x), frame.y(s.y)) for s in spots]
    crowd = [(frame.x(x), frame.y(y)) for s in spots for x, y, _ in s.dots]
    for s in spots:  # a label may cross an interval, but not gladly: each 2 units of its line count as a dot
        (left, right), (bottom, top) = map(frame.x, s.x_ci), map(frame.y, s.y_ci)
        crowd += [(left + 2 * i, frame.y(s.y)) for i in range(int((right - left) / 2) + 1)]
        crowd += [(frame.x(s.x), top + 2 * i) for i in range(int((bottom - top) / 2) + 1)]
    labels = [shortened(s.label, FONT, max(0.3 * frame.width, 150)) for s in spots]
    boxes = place_labels(labels, anchors, crowd, frame)
    for label, anchor, box in zip(labels, anchors, boxes, strict=True):
        parts += _label(label, anchor, box)
    return element(
        "svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", width=width, height=height,
        class_=f"chart scatter {class_}", role="img", aria_labelledby="scatter-title",
    )  # fmt: skip


def _spot_title(spot: Spot) -> str:
    learned = f"{numbers.percent(spot.y)} [{numbers.interval_text('locality', spot.y_ci)}]"
    lost = f"{numbers.percent(spot.x)} [{numbers.interval_text('locality', spot.x_ci)}]"
    return f"{spot.label}: ↑ {learned}, → {lost}"


def _axes(frame: Frame) -> Iterator[Markup]:
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = frame.x(tick), frame.y(tick)
        yield polyline([(x, frame.y(0)), (x, frame.y(1))], class_="grid")
        yield polyline([(frame.x(0), y), (frame.x(1), y)], class_="grid")
        yield svg_text(f"{100 * tick:.0f}", x, frame.y(0) + 18, class_="tick", text_anchor="middle")
        yield svg_text(f"{100 * tick:.0f}", frame.x(0) - 8, y + 4, class_="tick", text_anchor="end")
    middle = frame.top + frame.height / 2
    yield svg_text(say("plot.forgotten"), frame.x(0.5), frame.y(0) + 39, class_="axis", text_anchor="middle")
    yield svg_text(
        say("plot.learned"),
        0,
        0,
        class_="axis",
        text_anchor="middle",
        transform=f"translate(13 {middle:.0f}) rotate(-90)",
    )


def _label(label: str, anchor: Point, box: Box) -> Iterator[Markup]:
    near_x = min(max(anchor[0], box.left), box.right)
    near_y = min(max(anchor[1], box.top), box.bottom)
    if math.dist(anchor, (near_x, near_y)) > 16:
        yield polyline([anchor, (near_x, near_y)], class_="leader")
    yield svg_text(label, box.left + 2, box.bottom - 4, class_="label")


def place_labels(labels: Sequence[str], anchors: Sequence[Point], crowd: Sequence[Point], frame: Frame) -> list[Box]:
    """A box per label: close to its mark, inside the frame, on no other label and no mark, on few dots.

    Greedy, the most crowded marks first; each label tries 16 directions at growing distances and takes the cheapest.
    """
    marks = [Box(x - 9, y - 9, x + 9, y + 9) for x, y in anchors]
    inside = Box(frame.left, frame.top, frame.left + frame.width, frame.top + frame.height)
    placed: dict[int, Box] = {}

    def cost(box: Box, anchor: Point) -> float:
        taken = [*placed.values(), *marks]
        outside = (box.right - box.left) * (box.bottom - box.top) - box.overlap(inside)
        dots = sum(_holds(box, point) for point in crowd)
        crossed = sum(_holds(other, point) for other in placed.values() for point in _line(anchor, box))
        near = math.dist(anchor, _middle(box))
        touched = sum(box.overlap(other) > 0 for other in placed.values())  # by a hair, too
        return 1e3 * (sum(map(box.overlap, taken)) + touched + outside) + 6 * dots + 30 * crossed + near

    def neighbours(i: int) -> int:
        return sum(math.dist(anchors[i], other) < 60 for other in anchors)

    for i in sorted(range(len(labels)), key=neighbours, reverse=True):
        candidates = _candidates(anchors[i], text_width(labels[i], FONT) + 4, FONT + 5)
        placed[i] = min(candidates, key=partial(cost, anchor=anchors[i]))
    return [placed[i] for i in range(len(labels))]


def _holds(box: Box, point: Point) -> bool:
    return box.left < point[0] < box.right and box.top < point[1] < box.bottom


def _middle(box: Box) -> Point:
    return (box.left + box.right) / 2, (box.top + box.bottom) / 2


def _line(anchor: Point, box: Box) -> list[Point]:
    """Ten points of the line from a mark to the middle of its label."""
    x, y = _middle(box)
    return [(anchor[0] + (x - anchor[0]) * i / 10, anchor[1] + (y - anchor[1]) * i / 10) for i in range(1, 11)]


def _candidates(anchor: Point, wide: float, high: float) -> Iterator[Box]:
    for gap, step in itertools.product((11, 20, 32, 48, 70, 100, 140), range(16)):
        angle = math.radians(360 / 16 * step)
        x = anchor[0] + (gap + wide / 2) * math.cos(angle)
        y = anchor[1] + (gap + high / 2) * math.sin(angle)
        yield Box(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)


def loss_panel(
    curves: Mapping[str, Sequence[Curve]], size: Size, *, colour: str, steps: float, top: float, label: Message
) -> Markup:
    """The loss curves of one method: a thin line per cell, a thick one for their mean.

    curves: 'new' (the new examples; solid) and 'all' (everything in the step; dashed). steps, top: the axes' ends,
    the same in all panels so that they can be compared.
    """
    width, height, class_ = size
    frame = Frame(40, 10, width - 40 - 12, height - 10 - 34)
    parts: list[Markup] = []
    for value in nice_ticks(top):
        y = frame.y(value / top)
        parts.append(polyline([(frame.x(0), y), (frame.x(1), y)], class_="grid"))
        parts.append(svg_text(f"{value:g}", frame.x(0) - 6, y + 4, class_="tick", text_anchor="end"))
    for value in nice_ticks(steps):
        parts.append(
            svg_text(f"{value:g}", frame.x(value / steps), frame.y(0) + 16, class_="tick", text_anchor="middle")
        )
    parts.append(svg_text(say("plot.step"), frame.x(1), frame.y(0) + 31, class_="axis", text_anchor="end"))

    def drawn(points: Sequence[Point]) -> list[Point]:
        return [(frame.x(s / steps), frame.y(min(v / top, 1))) for s, v in points]

    for kind in ("all", "new"):
        for curve in curves.get(kind, ()):
            if len(curves[kind]) > 1:
                parts.append(polyline(drawn(curve.points), class_=f"thin {kind}", stroke=colour))
        average = mean_curve(curves.get(kind, ()))
        if average:
            parts.append(polyline(drawn(average), class_=f"thick {kind}", stroke=colour))
    return element(
        "svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", class_=f"chart panel {class_}", role="img",
        aria_label=text_of(label),
    )  # fmt: skip


def text_of(label: Message) -> str:
    """The label in every language, for screen readers."""
    return " / ".join(text(label, each).replace("`", "") for each in LANGUAGES)


def mean_curve(curves: Sequence[Curve]) -> list[Point]:
    """Mean over cells at every logged step; a cell that has stopped counts with its last loss."""
    if not curves:
        return []
    steps = sorted({step for curve in curves for step, _ in curve.points})
    first = max(curve.points[0][0] for curve in curves)
    return [(s, numbers.mean([_at(curve, s) for curve in curves])) for s in steps if s >= first]


def _at(curve: Curve, step: float) -> float:
    return [value for at, value in curve.points if at <= step][-1]


def nice_ticks(end: float, count: int = 4) -> list[float]:
    """Round numbers from 0 up to at most `end`."""
    raw = end / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    return [round(step * i, 10) for i in range(int(end / step + 1e-9) + 1)]
