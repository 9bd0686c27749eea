"""The difference of two answers: by word where a script has spaces between words, by character where it has none.

A difference is a flat tuple of strings `(same, removed, added, same, removed, added, ..., same)`: leaving out every
`added` gives the text before, leaving out every `removed` the text after. Equal texts are the tuple of that one text.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

__all__ = ["after", "before", "difference", "words"]

# Letters and digits of scripts without spaces between words (Han, kana, Hangul, Thai) stand alone.
_UNSPACED = (
    "\u0e00-\u0e7f\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[^\W{_UNSPACED}]+|\s+|.", re.DOTALL)

TOO_LONG = 4000
"""Words of both texts together above which only the common beginning and end are kept (the matcher is quadratic)."""

TOO_DIFFERENT = 0.25
"""Share of equal words below which marking single words is noise: the whole text counts as replaced."""


def words(text: str) -> list[str]:
    """Return the pieces that are compared. Joined, they are the text."""
    return _WORD.findall(text)


def difference(old: str, new: str) -> tuple[str, ...]:
    """Return (same, removed, added, same, removed, added, ..., same)."""
    if old == new:
        return (old,)
    a, b = words(old), words(new)
    pieces = [("", "", "")]  # (same before it, removed, added)
    for same, removed, added in _changes(a, b):
        blank = same.isspace() and len(pieces) > 1  # one blank between two changes: they are one change
        if blank or (not same and len(pieces) > 1):
            head, r, d = pieces[-1]
            pieces[-1] = (head, r + same + removed, d + same + added)
        else:
            pieces.append((same, removed, added))
    flat = [part for piece in pieces[1:] for part in piece]
    tail_length = len(old) - sum(len(s) + len(r) for s, r, _ in pieces)
    return (*flat, old[len(old) - tail_length :])


def _changes(a: list[str], b: list[str]) -> list[tuple[str, str, str]]:
    """Return each change with the equal text before it, without the equal text after the last change."""
    if len(a) + len(b) > TOO_LONG:
        return [_ends(a, b)]
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    codes = matcher.get_opcodes()
    equal = sum(len("".join(a[i1:i2]).strip()) for tag, i1, i2, _, _ in codes if tag == "equal")
    if equal < TOO_DIFFERENT * max(len("".join(a)), len("".join(b))):
        return [("", "".join(a), "".join(b))]
    changes, same = [], ""
    for tag, i1, i2, j1, j2 in codes:
        if tag == "equal":
            same = "".join(a[i1:i2])
        else:
            changes.append((same, "".join(a[i1:i2]), "".join(b[j1:j2])))
            same = ""
    return changes


def _ends(a: list[str], b: list[str]) -> tuple[str, str, str]:
    """Return the one change between the common beginning and the common end."""
    start, shorter = 0, min(len(a), len(b))
    while start < shorter and a[start] == b[start]:
        start += 1
    end = 0
    while end < shorter - start and a[-1 - end] == b[-1 - end]:
        end += 1
    return "".join(a[:start]), "".join(a[start : len(a) - end]), "".join(b[start : len(b) - end])


def before(parts: tuple[str, ...]) -> str:
    """Return the old text of a difference."""
    return "".join(part for i, part in enumerate(parts) if i % 3 != 2)


def after(parts: tuple[str, ...]) -> str:
    """Return the new text of a difference."""
    return "".join(part for i, part in enumerate(parts) if i % 3 != 1)
