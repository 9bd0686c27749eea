"""Quote words of a command line that a message tells people to type."""

from __future__ import annotations

import re
from shlex import quote

__all__ = ["shell_word"]

SAFE = re.compile(r"[\w@%+=:,./-]+")
"""Characters that need no quotes in any shell, including letters of every script, which shlex.quote would quote."""


def shell_word(text: str) -> str:
    """The text as one word for a shell, in quotes if necessary."""
    return text if SAFE.fullmatch(text) else quote(text)
