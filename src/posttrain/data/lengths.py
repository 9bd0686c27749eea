"""Rows that are longer than `max_length`, and rows that cannot be used: one policy for rows of every kind.

Encoding a record yields a row, a `Problem`, or `TooLong` where a row may not be cut; `gathered` sorts them, and
`EncodeResult.checked` raises or counts as the settings say. A problem that many rows have is one line of the error:
`rows.csv:2-61: ... (60 rows)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from posttrain.errors import DataError, Problem

__all__ = [
    "LONG_MEND",
    "SKIP_MEND",
    "EncodeResult",
    "Limits",
    "OnBadRow",
    "OverLong",
    "TooLong",
    "data_error",
    "gathered",
    "grouped",
    "listed",
    "with_mends",
]

OnBadRow = Literal["fail", "skip"]
OverLong = Literal["drop", "truncate", "raise"]
LONG_MEND = "raise max_length, or over_long: drop"
SKIP_MEND = "--on-bad-row skip leaves them out"
LISTED_PROBLEMS = 20
"""How many problems an error lists at most; it says how many more there are."""
NUMBERED = re.compile(r"(.*[:\[])(\d+)(\]?)", re.DOTALL)
"""The location of a row: `rows.jsonl:17`, or `rows.json[3]`."""
MANY = 3
"""From this many rows on there is one line for all."""
RANGES = 5
"""How many ranges of rows are named."""

RowT = TypeVar("RowT")


class Limits(NamedTuple):
    """max_length: tokens of a row; over_long: what becomes of a longer one; on_bad_row: of one that cannot be used."""

    max_length: int
    over_long: OverLong = "raise"
    on_bad_row: OnBadRow = "fail"


class TooLong(NamedTuple):
    """A row of so many tokens, which is not to be cut."""

    location: str
    length: int


class EncodeResult(NamedTuple, Generic[RowT]):
    """What came of records: rows ready for training, those that are too long, problems of those that cannot be used;
    truncated: how many rows were cut."""

    rows: list[RowT]
    long: list[TooLong]
    problems: list[Problem]
    truncated: int

    @property
    def dropped(self) -> int:
        """How many rows are left out for their length."""
        return len(self.long)

    def checked(self, records: int, limits: Limits, kind: type[DataError] = DataError) -> EncodeResult[RowT]:
        """The rows for training. DataError with every bad row (`kind`) unless these are skipped, with every row that is
        too long if `over_long` is `raise`, and where no row is left. records: how many rows were asked for."""
        cause = f"tokens, more than max_length {limits.max_length}"
        raised = self.long if limits.over_long == "raise" else []
        long = [Problem(one.location, f"{one.length} {cause}", LONG_MEND) for one in raised]
        bad = self.problems if limits.on_bad_row == "fail" else []
        if long or bad:
            raise data_error([*bad, *long], records, kind if self.problems else DataError, skippable=not long)
        if not self.rows:
            raise _nothing_left(records, len(self.long), limits.max_length, self.problems)
        return self


def gathered(found: Iterable[RowT | Problem | TooLong]) -> EncodeResult[RowT]:
    """Rows and what is wrong with others, apart."""
    every = list(found)
    rows: list[Any] = [one for one in every if not isinstance(one, Problem | TooLong)]
    long = [one for one in every if isinstance(one, TooLong)]
    problems = [one for one in every if isinstance(one, Problem)]
    return EncodeResult(rows, long, problems, sum(row.truncated for row in rows))


def _nothing_left(rows: int, dropped: int, max_length: int, bad: Sequence[Problem]) -> DataError:
    """The error of data of which no row is left: dropped ones are too long, the others have their own mends."""
    if not dropped:
        cause = f"no row is left of {rows}: all are bad" if rows else "there is no row"
        return DataError(Problem("", cause), *listed(bad))
    cause = f"no row is left of {rows} ({dropped} dropped as longer than {max_length}, {len(bad)} bad)"
    return DataError(Problem("", cause, "raise max_length or look at the rows with: posttrain data show"), *listed(bad))


@contextmanager
def with_mends(long: str) -> Iterator[None]:
    """Errors in the block mend rows that are too long by `long`, and do not mention skipping rows: for verbs that have
    neither `over_long` nor `--on-bad-row`."""
    try:
        yield
    except DataError as error:
        others = {LONG_MEND: long, SKIP_MEND: ""}
        raise type(error)(*(p._replace(mend=others.get(p.mend, p.mend)) for p in error.problems)) from error


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
    """One error for all bad rows: the first ones listed, the rest counted; skippable: whether `--on-bad-row skip` may
    help, which it does not when no row would be left."""
    bad = len({problem.location for problem in problems})  # a row may have several problems
    mend = SKIP_MEND if skippable and bad < rows else ""
    return kind(*listed(problems), Problem("", f"{bad} of {rows} rows cannot be used", mend))


def listed(problems: Sequence[Problem]) -> list[Problem | str]:
    """The first problems, one line for a problem that many rows have, and how many more there are."""
    groups = grouped(problems)
    more = sum(count for _, count in groups[LISTED_PROBLEMS:])
    return [*(problem for problem, _ in groups[:LISTED_PROBLEMS]), *([f"... and {more} more"] if more else [])]
