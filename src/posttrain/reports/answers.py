"""Write the answers before and after as compact JSON for the page's script, which draws a row when it becomes visible.

A question or a difference that repeats (the same probe with every method) is stored once; a row is four numbers.

A difference compares words where the script has spaces between words, and characters where it has none. It is a flat
tuple of strings `(same, removed, added, same, removed, added, ..., same)`. Without every `added` it is the text before,
without every `removed` the text after. The difference of equal texts is a tuple of this one text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from markupsafe import Markup

from posttrain.reports.folder import Run

__all__ = ["FLAGS", "difference", "payload", "prompt_text", "safe_json"]

FLAGS: tuple[str, ...] = ("ok", "strict", "leak", "new_beats_old", "counted")
"""Bit i of a row's flags is the field FLAGS[i] of samples.jsonl; only `counted` is computed: it says that `ok` is not
null. When `ok` is false, the answer to a target question is wrong, or an old answer has changed."""


def payload(run: Run) -> dict[str, Any]:
    """Return the data of the answers section.

    cells: [model, method, change, seed, checkpoint]; probes: [group, question, expected]; diffs: see the module's
    docstring; rows: cell, probe, diff, flags, cell, probe, diff, flags, ..., where the first three are indices in the
    other lists. The rows of one probe of a change are together, for all methods.
    """
    probes: dict[tuple[str, str, str], int] = {}
    pairs: dict[tuple[str, str], int] = {}
    cells: list[list[str | int]] = []
    rows: list[tuple[int, int, int, int, int, int]] = []
    changes = {name: i for i, name in enumerate(dict.fromkeys(cell.change for cell in run.cells))}
    for cell in run.cells:
        if not cell.samples:
            continue
        cells.append([cell.model, cell.method, cell.change, cell.seed, cell.checkpoint])
        for number, sample in enumerate(cell.samples):
            probe = (str(sample.get("group", "")), prompt_text(sample.get("prompt")), _expected(sample))
            pair = (str(sample.get("before") or ""), str(sample.get("after") or ""))
            pairs.setdefault(pair, len(pairs))
            known = probes.setdefault(probe, len(probes))
            told = {**sample, "counted": sample.get("ok") is not None}
            flags = sum(1 << i for i, name in enumerate(FLAGS) if told.get(name))
            rows.append((changes[cell.change], number, len(cells) - 1, known, pairs[pair], flags))
    flat = [value for row in sorted(rows) for value in row[2:]]
    return {"cells": cells, "probes": list(probes), "diffs": [difference(*pair) for pair in pairs], "rows": flat}


def _expected(sample: Mapping[str, Any]) -> str:
    """Return the accepted answers of a probe as one text; it is empty when there are none."""
    shown = []
    for key, form in (("answer", "{}"), ("answer_contains", "… {} …")):
        value = sample.get(key)
        shown += [form.format(one) for one in (value if isinstance(value, list) else [value]) if one]
    return " / ".join(shown)


def prompt_text(prompt: Any) -> str:
    """Return a prompt as text: a string as it is, messages as `role: content` lines."""
    if isinstance(prompt, list):
        return "\n".join(f"{m.get('role', '?')}: {m.get('content', '')}" for m in prompt if isinstance(m, dict))
    return str(prompt or "")


def safe_json(data: Any) -> Markup:
    """Return JSON that is safe inside a script element: it contains no `<`, `>`, `&`, U+2028 and U+2029."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate cannot be written as UTF-8. As an escape it is valid JSON.
    text = "".join(f"\\u{ord(c):04x}" if c in "<>&\u2028\u2029" or 0xD800 <= ord(c) <= 0xDFFF else c for c in text)
    return Markup(text)


# ---- differences ---------------------------------------------------------------------------------------------------

# Letters and digits of these scripts (Han, kana, Hangul, Thai) are compared one by one.
_UNSPACED = (
    "\u0e00-\u0e7f\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[^\W{_UNSPACED}]+|\s+|.", re.DOTALL)
"""One of the pieces that are compared; joined, the pieces are the text."""

TOO_LONG = 4000
"""With more pieces than this in both texts together, only the common beginning and the common end are kept, because the
matcher takes quadratic time."""

TOO_DIFFERENT = 0.25
"""When a smaller share of the longer text's characters is equal, the whole text counts as replaced: marks on single
words would only confuse the reader."""


def difference(old: str, new: str) -> tuple[str, ...]:
    """Return the difference of two texts: (same, removed, added, same, removed, added, ..., same)."""
    if old == new:
        return (old,)
    a, b = _WORD.findall(old), _WORD.findall(new)
    pieces = [("", "", "")]  # (equal text before the change, removed, added)
    for same, removed, added in _changes(a, b):
        blank = same.isspace() and len(pieces) > 1  # only white space between two changes: they are one change
        if blank or (not same and len(pieces) > 1):
            head, r, d = pieces[-1]
            pieces[-1] = (head, r + same + removed, d + same + added)
        else:
            pieces.append((same, removed, added))
    flat = [part for piece in pieces[1:] for part in piece]
    tail_length = len(old) - sum(len(s) + len(r) for s, r, _ in pieces)
    return (*flat, old[len(old) - tail_length :])


def _changes(a: list[str], b: list[str]) -> list[tuple[str, str, str]]:
    """Return (equal text before the change, removed, added) of each change."""
    if len(a) + len(b) > TOO_LONG:
        return [_ends(a, b)]
    codes = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    equal = sum(len("".join(a[i1:i2]).strip()) for tag, i1, i2, _, _ in codes if tag == "equal")
    if equal < TOO_DIFFERENT * max(len("".join(a)), len("".join(b))):
        return [("", "".join(a), "".join(b))]
    changes, same = [], ""
    for tag, i1, i2, j1, j2 in codes:
        old, new = "".join(a[i1:i2]), "".join(b[j1:j2])
        if tag != "equal":
            changes.append((same, old, new))
        same = old if tag == "equal" else ""
    return changes


def _ends(a: list[str], b: list[str]) -> tuple[str, str, str]:
    """Return the single change between the common beginning and the common end: (beginning, removed, added)."""

    def common(one: list[str], other: list[str]) -> int:
        return next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))

    start = common(a, b)
    end = common(a[start:][::-1], b[start:][::-1])
    return "".join(a[:start]), "".join(a[start : len(a) - end]), "".join(b[start : len(b) - end])
