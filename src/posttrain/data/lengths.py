"""Rows that are longer than `max_length`, and rows that cannot be used: one policy for rows of every kind.

Encoding a record yields a row, a `Problem`, or `TooLong` where a row may not be cut; `gathered` sorts them, and
`Encodings.checked` raises or counts as the settings say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from posttrain.data.problems import SKIP_MEND, data_error, listed
from posttrain.data.readers import OnBadRow
from posttrain.errors import DataError, Problem

__all__ = ["LONG_MEND", "EncodeResult", "Encodings", "Limits", "OverLong", "TooLong", "gathered", "with_mends"]

OverLong = Literal["drop", "truncate", "raise"]
LONG_MEND = "raise max_length, or over_long: drop"

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
    """Rows ready for training; how many were dropped or cut for their length; bad rows that were skipped."""

    rows: list[RowT]
    dropped: int
    truncated: int
    problems: list[Problem]


class Encodings(NamedTuple, Generic[RowT]):
    """What came of records: rows that can be used, rows that are too long, and what is wrong with the others."""

    rows: list[RowT]
    long: list[TooLong]
    bad: list[Problem]

    @property
    def truncated(self) -> int:
        """How many rows were cut."""
        made: Sequence[Any] = self.rows
        return sum(row.truncated for row in made)

    def checked(self, records: int, limits: Limits, kind: type[DataError] = DataError) -> EncodeResult[RowT]:
        """The rows for training. DataError with every bad row (`kind`) unless these are skipped, with every row that is
        too long if `over_long` is `raise`, and where no row is left. records: how many rows were asked for.
        """
        cause = f"tokens, more than max_length {limits.max_length}"
        raised = self.long if limits.over_long == "raise" else []
        long = [Problem(one.location, f"{one.length} {cause}", LONG_MEND) for one in raised]
        bad = self.bad if limits.on_bad_row == "fail" else []
        if long or bad:
            raise data_error([*bad, *long], records, kind if self.bad else DataError, skippable=not long)
        if not self.rows:
            raise _nothing_left(records, len(self.long), limits.max_length, self.bad)
        return EncodeResult(self.rows, len(self.long), self.truncated, self.bad)


def gathered(found: Iterable[RowT | Problem | TooLong]) -> Encodings[RowT]:
    """Rows and what is wrong with others, apart."""
    made: Encodings[RowT] = Encodings([], [], [])
    for one in found:
        if isinstance(one, Problem):
            made.bad.append(one)
        elif isinstance(one, TooLong):
            made.long.append(one)
        else:
            made.rows.append(one)
    return made


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
