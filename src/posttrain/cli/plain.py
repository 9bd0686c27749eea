"""Other people's and models' text on a terminal: as text, whatever is in it.

A model can say escape sequences, carriage returns and right-to-left overrides; a terminal would obey them.
"""

from __future__ import annotations

import unicodedata

__all__ = ["cells", "column", "fitted", "one_line", "plain"]

HARMLESS = "\n\t\u200c\u200d"
"""Line break, tab, and the joiners that emoji and some scripts need."""


def plain(text: str) -> str:
    """The text with control and direction characters written out (`\\x1b`), line breaks and tabs kept."""
    text = text.replace("\r\n", "\n")
    return "".join(
        character
        if character in HARMLESS or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def one_line(text: str, width: int = 100) -> str:
    """The same on one line, cut at `width` characters."""
    flat = plain(text).replace("\n", "⏎").replace("\t", " ")
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def cells(text: str) -> int:
    """How many columns of a terminal a line takes: Chinese characters take two, marks above others none."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def column(text: str, width: int) -> str:
    """A line filled up with spaces to so many columns."""
    return text + " " * (width - cells(text))


def fitted(text: str, width: int) -> str:
    """The beginning of a line that fits into so many columns."""
    if cells(text) <= width:
        return text
    end = 0
    while cells(text[: end + 1]) <= width:
        end += 1
    return text[:end]
