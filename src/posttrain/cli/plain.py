"""Make text of models and of other people safe to print on a terminal.

A model can output escape sequences, carriage returns and right-to-left overrides, and a terminal would execute them.
"""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len, set_cell_size

HARMLESS = "\n\t\u200c\u200d"
"""Control characters that stay: line break, tab, and the joiners that emoji and some scripts need."""


def plain(text: str) -> str:
    """Return the text with control and direction characters as escapes (`\\x1b`); keep line breaks and tabs."""
    text = text.replace("\r\n", "\n")
    return "".join(
        character
        if character in HARMLESS or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def one_line(text: str, width: int = 100) -> str:
    """Return the plain text on one line, cut at `width` characters."""
    flat = plain(text).replace("\n", "⏎").replace("\t", " ")
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def column(text: str, width: int) -> str:
    """Return a line with spaces added up to `width` columns of a terminal; a Chinese character takes two columns."""
    return text + " " * (width - cell_len(text))


def fitted(text: str, width: int) -> str:
    """Return the beginning of a line that fits into `width` columns of a terminal."""
    return text if cell_len(text) <= width else set_cell_size(text, width).rstrip()
