"""How tokens are shown to people. A byte-level token that is a part of a character is shown as the part it is.

    " Taiwan"   ->  Taiwan
    "\\n"        ->  ⏎
    " "         ->  ␣
    bytes       ->  雪 1/3, 雪 2/3, 雪 3/3

White space around words is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["token_names"]

PARTIAL = "\ufffd"
LONGEST = 8
"""Largest number of tokens that are tried as one character."""


def token_names(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return a name of each token, in order; names may be equal."""
    names: list[str] = []
    at = 0
    while at < len(ids):
        size = _whole(tokenizer, ids[at:])
        text = _shown(tokenizer.decode(list(ids[at : at + size]), skip_special_tokens=False))
        names += [text] if size == 1 else [f"{text} {part}/{size}" for part in range(1, size + 1)]
        at += size
    return names


def _whole(tokenizer: Any, ids: Sequence[int]) -> int:
    """Return how many tokens make up whole characters, 1 if none of the first few do."""
    for size in range(1, min(LONGEST, len(ids)) + 1):
        if PARTIAL not in tokenizer.decode(list(ids[:size]), skip_special_tokens=False):
            return size
    return 1


def _shown(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").strip(" ") or "␣"
