"""The answers before and after, as compact JSON for the page's script, which draws a row when a reader comes to it.

A question or a difference that repeats (the same probe under every method) is stored once; a row is four numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from posttrain.reports.diff import difference
from posttrain.reports.folder import Run

__all__ = ["CONTAINS", "FLAGS", "payload", "prompt_text", "safe_json"]

FLAGS: tuple[str, ...] = ("ok", "strict", "leak", "new_beats_old", "counted")
"""Bit i of a row's flags is the field of this name in samples.jsonl. Not ok: a target is wrong, or an old answer has
changed. counted: `ok` is not null."""

CONTAINS = "… {} …"
"""How `answer_contains` is shown."""


def payload(run: Run) -> dict[str, Any]:
    """Return the data of the answers section.

    cells: [model, method, change, seed, checkpoint]; probes: [group, question, expected]; diffs: see `diff.py`;
    rows: cell, probe, diff, flags, cell, probe, diff, flags, ...; all methods of one probe of a change stand together.
    """
    probes: dict[tuple[str, str, str], int] = {}
    pairs: dict[tuple[str, str], int] = {}
    diffs: list[Sequence[str]] = []
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
            if pair not in pairs:
                pairs[pair] = len(diffs)
                diffs.append(difference(*pair))
            known = probes.setdefault(probe, len(probes))
            rows.append((changes[cell.change], number, len(cells) - 1, known, pairs[pair], _flags(sample)))
    flat = [value for row in sorted(rows) for value in row[2:]]
    return {"cells": cells, "probes": list(probes), "diffs": diffs, "rows": flat}


def _expected(sample: Mapping[str, Any]) -> str:
    answers, parts = _listed(sample.get("answer")), _listed(sample.get("answer_contains"))
    return " / ".join([*answers, *(CONTAINS.format(part) for part in parts)])


def _listed(value: Any) -> list[str]:
    """Return accepted answers as a list: one, several, or none."""
    return [str(one) for one in (value if isinstance(value, list) else [value]) if one]


def _flags(sample: Mapping[str, Any]) -> int:
    known = {**sample, "counted": sample.get("ok") is not None}
    return sum(1 << i for i, name in enumerate(FLAGS) if known.get(name))


def prompt_text(prompt: Any) -> str:
    """Return a prompt as text: a string as it is, messages as `role: content` lines."""
    if isinstance(prompt, list):
        return "\n".join(f"{m.get('role', '?')}: {m.get('content', '')}" for m in prompt if isinstance(m, dict))
    return str(prompt or "")


def safe_json(data: Any) -> Markup:
    """Return JSON that cannot end or break the script element it stands in: without `<`, `>`, `&`, U+2028, U+2029."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate cannot be written as UTF-8; as an escape it is valid JSON.
    text = "".join(f"\\u{ord(c):04x}" if c in "<>&\u2028\u2029" or 0xD800 <= ord(c) <= 0xDFFF else c for c in text)
    return Markup(text)
