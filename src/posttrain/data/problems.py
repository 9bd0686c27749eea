"""Problems of rows as one error; a problem of many rows is one line: `rows.csv:2-61: ... (60 rows)`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.errors import DataError, Problem

__all__ = ["SKIP_MEND", "data_error", "grouped", "listed"]

SKIP_MEND = "--on-bad-row skip leaves them out"
LISTED_PROBLEMS = 20
"""How many problems an error lists at most; it says how many more there are."""
NUMBERED = re.compile(r"(.*[:\[])(\d+)(\]?)", re.DOTALL)
"""The location of a row: `rows.jsonl:17`, or `rows.json[3]`."""
MANY = 3
"""From this many rows on there is one line for all."""
RANGES = 5
"""How many ranges of rows are named."""


def grouped(problems: Sequence[Problem]) -> list[tuple[Problem, int]]:
    """Problems with the same cause and mend in one file become one, with their number, in the order of their first
    rows. A problem whose location has no number stays alone."""
    groups: dict[tuple[object, ...], list[tuple[Problem, int]]] = {}
    for i, problem in enumerate(problems):
        match = NUMBERED.fullmatch(problem.location)
        key: tuple[object, ...] = (match[1], match[3], problem.cause, problem.mend) if match else (i,)
        groups.setdefault(key, []).append((problem, int(match[2]) if match else 0))
    made = []
    for key, same in groups.items():
        if len(same) < MANY:
            made += [(problem, 1) for problem, _ in same]
            continue
        first, numbers = same[0][0], sorted({number for _, number in same})
        cause = f"{first.cause} ({len(numbers):,} rows)"
        made.append((Problem(f"{key[0]}{_ranges(numbers)}{key[1]}", cause, first.mend), len(same)))
    return made


def _ranges(numbers: Sequence[int]) -> str:
    """`2-4, 7, 9-12` of sorted numbers; the first few of many."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:RANGES]]
    return ", ".join([*told, "..."] if len(runs) > RANGES else told)


def data_error(
    problems: list[Problem], rows: int, kind: type[DataError] = DataError, *, skippable: bool = True
) -> DataError:
    """One error for all bad rows: the first ones listed, the rest counted.

    skippable: whether `--on-bad-row skip` may help; it does not when no row would be left.
    """
    bad = len({problem.location for problem in problems})  # a row may have several problems
    mend = SKIP_MEND if skippable and bad < rows else ""
    return kind(*listed(problems), Problem("", f"{bad} of {rows} rows cannot be used", mend))


def listed(problems: Sequence[Problem]) -> list[Problem | str]:
    """The first problems, one line for a problem that many rows have, and how many more there are."""
    groups = grouped(problems)
    more = sum(count for _, count in groups[LISTED_PROBLEMS:])
    return [*(problem for problem, _ in groups[:LISTED_PROBLEMS]), *([f"... and {more} more"] if more else [])]
