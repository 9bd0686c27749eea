"""One line for a problem that many rows have: `rows.csv:2-61: ... (60 rows)`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.errors import Problem

__all__ = ["grouped"]

NUMBERED = re.compile(r"(.*?)(?::(\d+)|\[(\d+)\])", re.DOTALL)
"""The location of a row: `rows.jsonl:17`, or `rows.json[3]`."""
MANY = 3
"""From this many rows on there is one line for all."""
RANGES = 5
"""How many ranges of rows are named."""


def grouped(problems: Sequence[Problem]) -> list[tuple[Problem, int]]:
    """Problems with the same cause and mend in one file become one, with their number; in the order of their first
    rows. A problem whose location has no number stays alone.
    """
    found: dict[object, list[tuple[Problem, int]]] = {}
    heads: dict[object, tuple[str, str]] = {}
    for number, problem in enumerate(problems):
        match = NUMBERED.fullmatch(problem.location)
        if match is None:
            found[number] = [(problem, 0)]
            continue
        brackets = match[3] is not None
        key: object = (match[1], brackets, problem.cause, problem.mend)
        heads[key] = (match[1] + ("[" if brackets else ":"), "]" if brackets else "")
        found.setdefault(key, []).append((problem, int(match[3] if brackets else match[2])))
    made = []
    for kind, same in found.items():
        if len(same) < MANY:
            made += [(problem, 1) for problem, _ in same]
            continue
        first = same[0][0]
        numbers = sorted({at for _, at in same})
        before, after = heads[kind]
        cause = f"{first.cause} ({len(numbers):,} rows)"
        made.append((Problem(f"{before}{ranges(numbers)}{after}", cause, first.mend), len(same)))
    return made


def ranges(numbers: Sequence[int]) -> str:
    """`2-4, 7, 9-12` of sorted numbers; the first few of many."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:RANGES]]
    return ", ".join([*told, "..."] if len(runs) > RANGES else told)
