"""SVG by hand: text stays text (it can be searched, read aloud and printed in any script), and nothing is imported.

Colours and fonts come from the page's CSS (classes `axis`, `grid`, `label`, ...); so a plot follows dark mode.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, TypeVar

from markupsafe import Markup, escape

from posttrain.reports.texts import LANGUAGES, Message, text

__all__ = [
    "COLOURS",
    "Mark",
    "element",
    "mark",
    "mark_icon",
    "marks_of",
    "polyline",
    "shortened",
    "svg_text",
    "text_width",
    "words",
]

# First Okabe & Ito (2008), https://jfly.uni-koeln.de/color/: told apart with any kind of colour blindness. Their yellow
# is left out (too pale for lines on white), and grey stands for their black, which no dark page would show. Then four
# more, so that a dozen methods hardly share a colour; their shapes tell them apart where their colours do not.
COLOURS: tuple[str, ...] = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"),
    *("#8e5bd6", "#8a8a1f", "#a8506a", "#3d8f99"),
)

Point = tuple[float, float]
Name = TypeVar("Name", bound=Hashable)


def _polygon(points: list[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"


def _regular(corners: int, turn: float, stretch: float = 1.0) -> Callable[[float, float, float], str]:
    def path(x: float, y: float, r: float) -> str:
        angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
        return _polygon([(x + stretch * r * math.cos(a), y + stretch * r * math.sin(a)) for a in angles])

    return path


def _circle(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0Z"


def _star(x: float, y: float, r: float) -> str:
    radii = [(1.25 * r if i % 2 == 0 else 0.5 * r, math.radians(-90 + 36 * i)) for i in range(10)]
    return _polygon([(x + d * math.cos(a), y + d * math.sin(a)) for d, a in radii])


def _cross(x: float, y: float, r: float, turn: float = 0.0) -> str:
    w = 0.38 * r
    corners = [
        (-w, -r),
        (w, -r),
        (w, -w),
        (r, -w),
        (r, w),
        (w, w),
        (w, r),
        (-w, r),
        (-w, w),
        (-r, w),
        (-r, -w),
        (-w, -w),
    ]
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return _polygon([(x + 1.1 * (c * a - s * b), y + 1.1 * (s * a + c * b)) for a, b in corners])


def _half(x: float, y: float, r: float) -> str:
    return f"M{x - 1.3 * r:.1f} {y + 0.65 * r:.1f}a{1.3 * r:.1f} {1.3 * r:.1f} 0 0 1 {2.6 * r:.1f} 0Z"


def _bar(x: float, y: float, r: float) -> str:
    return _polygon(
        [(x - 1.3 * r, y - r / 2), (x + 1.3 * r, y - r / 2), (x + 1.3 * r, y + r / 2), (x - 1.3 * r, y + r / 2)]
    )


SHAPES: tuple[Callable[[float, float, float], str], ...] = (
    _circle,
    _regular(4, 45, 1.2),  # square
    _regular(3, -90, 1.3),  # triangle
    _regular(4, 0, 1.3),  # diamond
    _regular(3, 90, 1.3),  # triangle pointing down
    _cross,
    _star,
    lambda x, y, r: _cross(x, y, r, 45),
    _regular(3, 0, 1.3),  # triangle pointing right
    _half,  # of a disc
    _regular(3, 180, 1.3),  # triangle pointing left
    _bar,
)
"""Twelve that differ at a glance; a hexagon, say, is a circle at this size."""


class Mark(NamedTuple):
    """How something is drawn in every plot and table: shape number, colour, and whether only its outline is."""

    shape: int
    colour: str
    hollow: bool = False


def marks_of(names: Iterable[Name]) -> dict[Name, Mark]:
    """A mark for each name, no two of them the same. Twelve shapes and eleven colours in step make 132 pairs; then come
    the same as outlines, then colours that are made by turning the hue, of which there is no end.
    """
    return {name: _mark(i) for i, name in enumerate(dict.fromkeys(names))}


def _mark(number: int) -> Mark:
    shape, lap = number % len(SHAPES), number // (len(SHAPES) * len(COLOURS))
    if lap < 2:
        return Mark(shape, COLOURS[number % len(COLOURS)], hollow=lap == 1)
    turn = number * 0.381966  # the golden angle: neighbours are far apart, and none comes twice
    light = 0.3 + 0.25 * ((number * 0.7548777) % 1)
    rgb = colorsys.hls_to_rgb(turn % 1, light, 0.65)
    return Mark(shape, "#" + "".join(f"{round(255 * part):02x}" for part in rgb))


def mark(which: Mark, x: float, y: float, r: float, **attributes: object) -> Markup:
    """One mark centred on (x, y)."""
    path = SHAPES[which.shape](x, y, r)
    if which.hollow:
        style = f"fill:var(--paper);stroke:{which.colour};stroke-width:2"
        return element("path", d=path, style=style, **attributes)
    return element("path", d=path, fill=which.colour, **attributes)


def mark_icon(which: Mark) -> Markup:
    """The mark as a 14 px picture beside the method's name."""
    return element(
        "svg", mark(which, 7, 7, 5), viewBox="0 0 14 14", width=14, height=14, class_="mark", aria_hidden="true"
    )


def element(name: str, *children: Markup, **attributes: object) -> Markup:
    """An element with escaped attributes; `class_` is class, `aria_label` is aria-label, floats get one decimal."""
    words = []
    for key, value in attributes.items():
        shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
        words.append(Markup('{}="{}"').format(_attribute_name(key), shown))
    head = Markup(" ").join([Markup("<" + name), *words])
    if not children:
        return head + Markup("/>")
    return head + Markup(">") + Markup("").join(children) + Markup(f"</{name}>")


def _attribute_name(key: str) -> str:
    return key if key == "viewBox" else key.rstrip("_").replace("_", "-")


def svg_text(content: str | Message, x: float, y: float, **attributes: object) -> Markup:
    """Text at a place; a message is there once per language and the page's CSS shows one."""
    return element("text", words(content), x=x, y=y, **attributes)


def words(content: str | Message) -> Markup:
    """The inside of a text element."""
    if isinstance(content, str):
        return escape(content)
    return Markup("").join(
        Markup('<tspan lang="{}">{}</tspan>').format(each, text(content, each).replace("`", "")) for each in LANGUAGES
    )


def polyline(points: list[Point], **attributes: object) -> Markup:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}".replace(".0,", ",") for x, y in points)
    return element("polyline", points=path, fill="none", **attributes)


def shortened(content: str, size: float, room: float) -> str:
    """The text, or its beginning and its end where it is wider than `room`: long names often differ in their end."""
    if text_width(content, size) <= room:
        return content
    for kept in range(len(content) - 1, 1, -1):
        cut = content[: kept - kept // 2].rstrip() + "\u2026" + content[len(content) - kept // 2 :].lstrip()
        if text_width(cut, size) <= room:
            return cut
    return content[:1] + "\u2026"


def text_width(content: str, size: float) -> float:
    """About how wide a bold text is at a font size: full-width characters are one em, others 0.65 (DejaVu Sans)."""
    return sum(size if ord(c) >= 0x1100 else 0.65 * size for c in content)
