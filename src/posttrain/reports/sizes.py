"""How large charts are drawn: always as wide as their place on the page, at every width of the screen.

A chart is drawn once for each range of widths rather than stretched, so that its text keeps its size; the page's CSS
shows the one that fits (`at-wide`: 1000 px and more, `at-narrow`: below 560 px, `at-mid`: between them, and in print).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup

__all__ = ["BESIDE", "SMALL", "WHOLE", "Size", "columns_of", "drawn", "panel_sizes"]


class Size(NamedTuple):
    """Width and height in CSS pixels, and the classes that say when the chart is shown."""

    width: float
    height: float
    class_: str


WHOLE: tuple[Size, ...] = (Size(1160, 470, "at-wide"), Size(720, 470, "at-mid"), Size(350, 380, "at-narrow"))
"""A chart across the page."""

SMALL: tuple[Size, ...] = (Size(376, 220, ""),)
"""A panel among three or more; on a phone it is as wide as the page."""

HALF: tuple[Size, ...] = (Size(568, 260, "at-wide"), Size(350, 220, "at-mid at-narrow"))
BESIDE: tuple[Size, ...] = (Size(760, 300, "at-wide"), Size(480, 250, "at-mid"), Size(350, 230, "at-narrow"))
"""A chart that shares its row with a table."""

ALONE: tuple[Size, ...] = (Size(1160, 320, "at-wide"), Size(720, 280, "at-mid"), Size(350, 220, "at-narrow"))


def columns_of(panels: int) -> int:
    """Columns of so many panels on a wide page: they fill it, and four are two rows of two."""
    return panels if panels <= 2 else 2 if panels == 4 else 3


def panel_sizes(panels: int) -> tuple[Size, ...]:
    """The sizes of each of so many panels."""
    return {1: ALONE, 2: HALF}.get(columns_of(panels), SMALL)


def drawn(sizes: tuple[Size, ...], draw: Callable[[Size], Markup]) -> Markup:
    """The chart at every size."""
    return Markup("").join(draw(size) for size in sizes)
