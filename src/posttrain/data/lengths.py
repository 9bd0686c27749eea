"""Handle rows that are longer than `max_length` and rows that cannot be used, in one way for rows of every kind.

Encoding a record yields a row, a `Problem`, or `TooLong` if the row is too long and may not be cut. `gathered` sorts
them, and `EncodeResult.checked` raises or counts as the settings say. A problem that many rows have is one line of the
error: `rows.csv:2-61: ... (60 rows)`.
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
"""The most problems that an error lists; it also says how many more there are."""
NUMBERED = re.compile(r"(.*[:\[])(\d+)(\]?)", re.DOTALL)
"""Matches the location of a row: `rows.jsonl:17`, or `rows.json[3]`."""
MANY = 3
"""The least number of rows with the same problem that get one line together."""
RANGES = 5
"""The most ranges of rows that are named."""

RowT = TypeVar("RowT")


class Limits(NamedTuple):
    """max_length: the most tokens of a row; over_long: what to do with a longer row; on_bad_row: with a bad row."""

    max_length: int
    over_long: OverLong = "raise"
    on_bad_row: OnBadRow = "fail"


class TooLong(NamedTuple):
    """A row that is too long and must not be cut. length: its tokens."""

    location: str
    length: int


class EncodeResult(NamedTuple, Generic[RowT]):
    """The result of encoding records. rows: ready for training; long: rows that are too long; problems: of the records
    that cannot be used; truncated: how many rows were cut."""

    rows: list[RowT]
    long: list[TooLong]
    problems: list[Problem]
    truncated: int

    @property
    def dropped(self) -> int:
        """Return how many rows are left out because they are too long."""
        return len(self.long)

    def checked(self, records: int, limits: Limits, kind: type[DataError] = DataError) -> EncodeResult[RowT]:
        """Return this result if it may be used for training.

        Raise DataError (`kind` if there are bad rows) with every bad row unless bad rows are skipped, with every row
        that is too long if `over_long` is `raise`, and when no row is left. records: how many records were encoded.
        """
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
    """Sort rows, rows that are too long, and problems into one result."""
    every = list(found)
    rows: list[Any] = [one for one in every if not isinstance(one, Problem | TooLong)]
    long = [one for one in every if isinstance(one, TooLong)]
    problems = [one for one in every if isinstance(one, Problem)]
    return EncodeResult(rows, long, problems, sum(row.truncated for row in rows))


def _nothing_left(rows: int, dropped: int, max_length: int, bad: Sequence[Problem]) -> DataError:
    """Return the error of data without a row left. Dropped rows are too long; the bad rows have their own mends."""
    if not dropped:
        cause = f"no row is left of {rows}: all are bad" if rows else "there is no row"
        return DataError(Problem("", cause), *listed(bad))
    cause = f"no row is left of {rows} ({dropped} dropped as longer than {max_length}, {len(bad)} bad)"
    return DataError(Problem("", cause, "raise max_length or look at the rows with: posttrain data show"), *listed(bad))


@contextmanager
def with_mends(long: str) -> Iterator[None]:
    """Change the mends of errors raised in the block: `long` for rows that are too long, and none about skipping rows.
    This is for verbs that have neither `over_long` nor `--on-bad-row`.
    """
    try:
        yield
    except DataError as error:
        others = {LONG_MEND: long, SKIP_MEND: ""}
        raise type(error)(*(p._replace(mend=others.get(p.mend, p.mend)) for p in error.problems)) from error


def grouped(problems: Sequence[Problem]) -> list[tuple[Problem, int]]:
    """Join problems of one file with the same cause and mend, and return each with its number of rows.

    They are in the order of their first rows. Fewer than MANY problems, and a problem without a row number in its
    location, are not joined.
    """
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
    """Return sorted numbers as ranges, such as `2-4, 7, 9-12`; of many ranges only the first RANGES."""
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
    """Return one error for all bad rows, with the first problems listed and the others counted. skippable: whether
    `--on-bad-row skip` may help; it does not help when no row would be left.
    """
    bad = len({problem.location for problem in problems})  # a row may have several problems
    mend = SKIP_MEND if skippable and bad < rows else ""
    return kind(*listed(problems), Problem("", f"{bad} of {rows} rows cannot be used", mend))


def listed(problems: Sequence[Problem]) -> list[Problem | str]:
    """Return the first problems, one line for a problem that many rows have, and how many more there are."""
    groups = grouped(problems)
    more = sum(count for _, count in groups[LISTED_PROBLEMS:])
    return [*(problem for problem, _ in groups[:LISTED_PROBLEMS]), *([f"... and {more} more"] if more else [])]
