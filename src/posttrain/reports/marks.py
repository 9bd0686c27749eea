"""The name of a method in plots and tables, and its mark: a colour and a shape that no other method has."""

from __future__ import annotations

import colorsys
from collections.abc import Hashable, Iterable
from typing import NamedTuple, TypeVar

from markupsafe import Markup

from posttrain.exams.floor import NOISE_FLOOR
from posttrain.reports.folder import Cell, Row, Run, Version
from posttrain.reports.texts import Words, say

__all__ = ["COLOURS", "SHAPES", "Mark", "label_of", "mark_icon", "marks_of", "method_of", "row_label"]

# The first seven are from Okabe & Ito (2008), https://jfly.uni-koeln.de/color/: they differ for every kind of colour
# blindness. Their yellow is left out (too pale for lines on white), and grey replaces their black, which is invisible
# on a dark page. With the last four, two of a dozen methods rarely share a colour; if they do, their shapes differ.
COLOURS: tuple[str, ...] = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"),
    *("#8e5bd6", "#8a8a1f", "#a8506a", "#3d8f99"),
)

SHAPES: tuple[str, ...] = (
    "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0Z",  # circle
    "M.85 .85L-.85 .85L-.85 -.85L.85 -.85Z",  # square
    "M0 -1.3L1.13 .65L-1.13 .65Z",  # triangle
    "M1.3 0L0 1.3L-1.3 0L0 -1.3Z",  # diamond
    "M0 1.3L-1.13 -.65L1.13 -.65Z",  # triangle that points down
    "M-.42 -1.1L.42 -1.1L.42 -.42L1.1 -.42L1.1 .42L.42 .42L.42 1.1L-.42 1.1L-.42 .42L-1.1 .42L-1.1 -.42L-.42 -.42Z",
    "M0 -1.25L.29 -.41L1.19 -.39L.48 .15L.73 1.01L0 .5L-.73 1.01L-.48 .15L-1.19 -.39L-.29 -.41Z",  # star
    "M.48 -1.07L1.07 -.48L.59 0L1.07 .48L.48 1.07L0 .59L-.48 1.07L-1.07 .48L-.59 0L-1.07 -.48L-.48 -1.07L0 -.59Z",
    "M1.3 0L-.65 1.13L-.65 -1.13Z",  # triangle that points right
    "M-1.3 .65a1.3 1.3 0 0 1 2.6 0Z",  # half a disc
    "M-1.3 0L.65 -1.13L.65 1.13Z",  # triangle that points left
    "M-1.3 -.5L1.3 -.5L1.3 .5L-1.3 .5Z",  # bar
)
"""SVG paths of radius 1, as Vega-Lite expects them. There are only twelve, because further shapes would look too
similar (a hexagon looks like a circle)."""

Name = TypeVar("Name", bound=Hashable)


class Mark(NamedTuple):
    """A shape (an SVG path) and a colour."""

    shape: str
    colour: str


def marks_of(names: Iterable[Name]) -> dict[Name, Mark]:
    """Return a different mark for each name, in the order of the names. Shapes (12) and colours (11) advance together,
    which gives 132 different pairs. Later names get further hues.
    """
    return {name: _mark(i) for i, name in enumerate(dict.fromkeys(names))}


def _mark(number: int) -> Mark:
    shape = SHAPES[number % len(SHAPES)]
    if number < len(SHAPES) * len(COLOURS):
        return Mark(shape, COLOURS[number % len(COLOURS)])
    hue = number * 0.381966 % 1  # the golden angle: neighbours are far apart, no hue repeats
    rgb = colorsys.hls_to_rgb(hue, 0.3 + 0.25 * (number * 0.7548777 % 1), 0.65)
    return Mark(shape, "#" + "".join(f"{round(255 * part):02x}" for part in rgb))


def mark_icon(mark: Mark) -> Markup:
    """Return the mark as an SVG picture of 14 px, to show next to a name."""
    return Markup(
        '<svg viewBox="0 0 14 14" width="14" height="14" class="mark" aria-hidden="true">'
        '<path transform="translate(7 7) scale(5)" d="{}" fill="{}"/></svg>'
    ).format(mark.shape, mark.colour)


def label_of(version: Version, run: Run) -> str:
    """Return the label of a method: its name, and the model if the run has several.

    The model is shortened to the last part of its name, unless two models have the same last part. In a run of
    `posttrain exam`, where nothing was trained, the label is the whole model name.
    """
    model, method = version
    if run.alone:
        return model
    if len(run.models) < 2:
        return method
    ends = {name.rsplit("/", 1)[-1] for name in run.models}
    return f"{method} ({model.rsplit('/', 1)[-1] if len(ends) == len(run.models) else model})"


def row_label(row: Row, run: Run) -> str:
    """Return the label of a row: that of its method, and the checkpoint if there are several."""
    label = label_of(row.version, run)
    return f"{label} {row.checkpoint}" if len({r.checkpoint for r in run.shown}) > 1 else label


def method_of(row: Row | Cell) -> Words:
    """Return the method's name; for the noise floor, which is no method, a translated name."""
    return say("answers.noise_floor") if row.method == NOISE_FLOOR else row.method
