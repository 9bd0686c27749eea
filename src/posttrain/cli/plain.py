"""Other people's and models' text on a terminal: as text, whatever is in it.

A model can say escape sequences, carriage returns and right-to-left overrides; a terminal would obey them.
"""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len, set_cell_size

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


def column(text: str, width: int) -> str:
    """A line filled up with spaces to so many columns of a terminal: a Chinese character takes two."""
    return text + " " * (width - cell_len(text))


def fitted(text: str, width: int) -> str:
    """The beginning of a line that fits into so many columns."""
    return text if cell_len(text) <= width else set_cell_size(text, width).rstrip()
