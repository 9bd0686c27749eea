"""Rows of benchmark files with their locations, in every format that `data/files.py` reads.

All problems of a file are collected and raised together:

    rows = Rows(path)
    for row in rows:
        question = row.text("question")          # None, and noted, when it is not a text
        ...
    rows.check()                                 # DataError with every problem
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from posttrain.config.json_text import BadJson, parse_json
from posttrain.data.fields import BadRow, keys_of, kind_of
from posttrain.data.files import Names, TableRow, ending_of, file_rows, user_text
from posttrain.data.lengths import data_error
from posttrain.errors import DataError, Problem

__all__ = ["Row", "Rows", "read_json", "read_rows"]

T = TypeVar("T")


class Row:
    """One row, the `number`th of its file, at a location such as `rte.jsonl:17`. Its getters note its problems."""

    def __init__(self, location: str, value: Mapping[str, Any], problems: list[Problem], number: int = 1) -> None:
        self.location = location
        self.number = number
        self.value = value
        self._problems = problems

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def with_values(self, more: Mapping[str, Any]) -> Row:
        """Return the row with the keys of an object inside it added."""
        return Row(self.location, {**self.value, **more}, self._problems, self.number)

    def bad(self, cause: str, mend: str = "") -> None:
        """Note a problem of this row."""
        self._problems.append(Problem(self.location, cause, mend))

    def text(self, key: str) -> str | None:
        """Return a string; numbers become strings (TSV, labels). None, and noted, if it is missing or blank."""
        value = self.value.get(key)
        if value is None and isinstance(self.value, TableRow) and key in self.value:  # an empty cell
            value = ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.bad(f"'{key}' must be a text, got {kind_of(value)}", f"the row has {keys_of(self.value)}")
            return None
        if not value.strip():
            self.bad(f"'{key}' is empty")
            return None
        return value

    def texts(self, key: str) -> list[str] | None:
        """Return a list of at least one string; a single string counts as a list. None, and noted, if it is something
        else or one of the strings is blank.
        """
        value = self.value.get(key)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            got = "an empty list" if value == [] else kind_of(value)
            self.bad(f"'{key}' must be a text or a list of texts, got {got}")
            return None
        if not all(one.strip() for one in value):
            self.bad(f"'{key}' has an empty text")
            return None
        return value


class Rows:
    """The rows of one file. Iterate over them, then call `check`. names: for the columns of a table without a header
    line (see `tables.Names`). In a TSV file quotation marks have no special meaning, as in GLUE's files.
    """

    def __init__(self, path: Path, *, names: Names = lambda _: None) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.count = 0
        self._names = names

    def __iter__(self) -> Iterator[Row]:
        quotes = ending_of(self.path) != ".tsv"
        for location, value in file_rows(self.path, notes=[], quotes=quotes, names=self._names):
            self.count += 1
            if isinstance(value, BadRow):
                self.problems.append(Problem(location, value.cause, value.mend))
            elif isinstance(value, dict):
                yield Row(location, value, self.problems, self.count)
            else:
                self.problems.append(Problem(location, f"an object is expected, got {kind_of(value)}"))

    def check(self, kept: int | None = None) -> None:
        """Raise DataError with every problem, or if there is no row, or none that was kept (`kept` is 0)."""
        if self.problems:
            raise data_error(self.problems, self.count, skippable=False)
        if self.count == 0 or kept == 0:
            what = "the file is empty: no rows" if self.count == 0 else f"none of the {self.count} rows can be asked"
            raise DataError(Problem(str(self.path), what))


def read_rows(path: Path, read: Callable[[Row], T | None]) -> list[T]:
    """Return what `read` makes of each row, without None. DataError as in `Rows.check`."""
    rows = Rows(path)
    found = [one for row in rows if (one := read(row)) is not None]
    rows.check(len(found))
    return found


def read_json(path: Path) -> Any:
    """Return a JSON file's value; DataError with the line at which it is not valid."""
    try:
        return parse_json(user_text(path))
    except BadJson as bad:
        location = f"{path}:{bad.line}" if bad.line else str(path)
        raise DataError(Problem(location, bad.cause, bad.mend)) from bad
