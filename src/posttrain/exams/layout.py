"""What a table or a JSON answer says, as sentences: the rules that read clauses know no cells and no braces.

`{"capital": "Ottawa", "largest_city": "Toronto"}` says "capital is Ottawa" and "largest city is Toronto"; a table's
cell stands with its heading and its row's first cell: "Country Canada Capital is Ottawa". Other text stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["as_sentences"]

_FENCED = re.compile(r"\s*```\w*\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_RULE = re.compile(r"^[\s|:-]*-[\s|:-]*$")
_TABLE = re.compile(r"(?:^[ \t]*\|.+\|[ \t]*(?:\n|\Z)){2,}", re.MULTILINE)
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def as_sentences(answer: str) -> str:
    """The answer with its tables, or all of it where it is a JSON object, as sentences."""
    stripped = answer.strip()
    if stripped[:1] in ("{", "[", "`"):
        fenced = _FENCED.fullmatch(stripped)
        try:
            value = json.loads(fenced.group(1) if fenced else stripped)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict | list):
            return "\n".join(_leaves(value, ""))
    return _TABLE.sub(lambda found: "\n".join(_rows(found.group())) + "\n", answer) if "|" in answer else answer


def _leaves(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, re.sub(r"[_\s]+", " ", str(name)).strip())
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)
    elif value is not None:
        yield _is(key, value if isinstance(value, str) else json.dumps(value))


def _is(subject: str, value: str) -> str:
    """One sentence; its end is a line break, which no value loses."""
    value = " ".join(value.split())
    if not subject:
        return value
    return f"{subject}是{value}" if _CHINESE.search(subject) else f"{subject} is {value}"


def _rows(table: str) -> Iterator[str]:
    """A sentence for every cell, of its row's first cell; a table without the rule below its heading has no heading."""
    lines = [line for line in table.splitlines() if line.strip()]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if not _RULE.match(line)]
    heading = rows[0] if len(lines) > 1 and _RULE.match(lines[1]) and len(rows) > 1 else []
    for cells in rows[1:] if heading else rows:
        (first, of), *others = zip(cells, heading + [""] * (len(cells) - len(heading)), strict=False)
        row = f"{of} {first}".strip()
        yield from (_is(f"{row} {name}".strip(), cell) for cell, name in others if cell)
        if not others:
            yield row
