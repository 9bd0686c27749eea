"""Recognise characters of scripts without spaces between words, and give equal questions one spelling."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

__all__ = ["CJK", "is_cjk", "normalise_prompt", "normalised"]

CJK = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""The Chinese, Japanese and bopomofo characters, as ranges for a character class of a regular expression."""
_CJK = re.compile(f"[{CJK}]")


def is_cjk(character: str) -> bool:
    """Return whether a character is one of `CJK`."""
    return _CJK.match(character) is not None


def normalise_prompt(text: str) -> str:
    """Return a prompt without case, width, spaces and punctuation, so that all spellings of a question become equal.

    >>> normalise_prompt("What is  the capital？") == normalise_prompt("what is the Capital?")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LN") or folded.strip()


@lru_cache(maxsize=8)
def normalised(prompts: frozenset[str]) -> frozenset[str]:
    """Return the normalised prompts. The result is cached, since a study needs the same thousands many times."""
    return frozenset(map(normalise_prompt, prompts))
