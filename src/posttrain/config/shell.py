"""Words of a command line that a message tells people to type."""

from __future__ import annotations

import re
from shlex import quote

__all__ = ["shell_word"]

SAFE = re.compile(r"[\w@%+=:,./-]+")
"""What no shell reads as anything else; letters of every script are among it, which shlex.quote would quote."""


def shell_word(text: str) -> str:
    """The text as one word for a shell, in quotes where it needs them."""
    return text if SAFE.fullmatch(text) else quote(text)
