"""Other people's and models' text on a terminal: as text, whatever is in it.

A model can say escape sequences, carriage returns and right-to-left overrides; a terminal would obey them.
"""

from __future__ import annotations

import unicodedata

__all__ = ["one_line", "plain"]

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
