"""Rows of benchmark files, each knowing its place: JSON Lines, a JSON array, TSV, CSV, Parquet.

Everything that is wrong with a file is collected and told at once:

    rows = Rows(path)
    for row in rows:
        question = row.text("question")          # None, and noted, when it is not a text
        ...
    rows.check()                                 # DataError with every problem
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.config.json_text import BadJson, parse_json
from posttrain.config.load import read_text
from posttrain.data.fields import BadRow
from posttrain.data.files import json_lines
from posttrain.data.readers import data_error
from posttrain.errors import ConfigError, DataError, Problem

__all__ = ["Row", "Rows", "no_path"]

LONGEST = 2**31 - 1
"""Characters of a field of a table; Python's own limit, 131,072, is less than a long text."""


class Row:
    """One row, the `number`th of its file. place: `rte.jsonl:17`. Its getters note what is wrong in the file's list."""

    def __init__(self, place: str, value: Mapping[str, Any], problems: list[Problem], number: int = 1) -> None:
        self.place = place
        self.number = number
        self.value = value
        self._problems = problems

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def with_values(self, more: Mapping[str, Any]) -> Row:
        """The row with the keys of an object inside it."""
        return Row(self.place, {**self.value, **more}, self._problems, self.number)

    def bad(self, cause: str, mend: str = "") -> None:
        """Note a problem of this row."""
        self._problems.append(Problem(self.place, cause, mend))

    def text(self, key: str, *, empty: bool = False) -> str | None:
        """A string; numbers become one (TSV, labels). None, and noted, when it is not there or blank."""
        value = self.value.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.bad(f"'{key}' must be a text, got {kind_of(value)}", f"the row has {keys_of(self.value)}")
            return None
        if not value.strip() and not empty:
            self.bad(f"'{key}' is empty")
            return None
        return value

    def texts(self, key: str) -> list[str] | None:
        """A list of strings, at least one; a string alone counts as one."""
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
    """The rows of one file. Iterate, then `check`.

    header: names of the columns of a TSV or CSV file without a first line of names; quotes: whether quotation marks
    group a field in it (CSV) or are words like others (the TSV files of GLUE).
    """

    def __init__(self, path: Path, *, header: tuple[str, ...] | None = None, quotes: bool | None = None) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.count = 0
        self._header = header
        self._quotes = quotes

    def __iter__(self) -> Iterator[Row]:
        for place, value in self._read():
            self.count += 1
            if isinstance(value, BadRow):
                self.problems.append(Problem(place, value.cause, value.mend))
            elif isinstance(value, dict):
                yield Row(place, value, self.problems, self.count)
            elif value is not None:
                self.problems.append(Problem(place, f"an object is expected, got {kind_of(value)}"))

    def check(self, kept: int | None = None) -> None:
        """DataError with every problem, and when there is no row, or none that was kept."""
        if self.problems:
            raise data_error(self.problems, self.count, skippable=False)
        if self.count == 0 or kept == 0:
            what = "the file is empty: no rows" if self.count == 0 else f"none of the {self.count} rows can be asked"
            raise DataError(Problem(str(self.path), what))

    def _read(self) -> Iterator[tuple[str, Any]]:
        kind = self.path.suffix.lower()
        if kind in {".parquet", ".pq"}:
            return self._parquet()
        try:
            text = read_text(self.path)
        except ConfigError as error:  # not UTF-8
            raise DataError(*error.problems) from error
        if kind in {".tsv", ".csv"}:
            return self._table(text, "\t" if kind == ".tsv" else ",")
        if text.lstrip().startswith("["):
            return self._array(text)
        return json_lines(text, str(self.path))

    def _array(self, text: str) -> Iterator[tuple[str, Any]]:
        value = load_json(text, self.path)
        for number, one in enumerate(value, start=1):
            yield f"{self.path}[{number}]", one

    def _table(self, text: str, delimiter: str) -> Iterator[tuple[str, Any]]:
        quoted = delimiter == "," if self._quotes is None else self._quotes
        lines = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )
        header = self._header
        for cells in self._cells(lines):
            place = f"{self.path}:{lines.line_num}"
            if not cells:
                continue
            if header is None:
                header = tuple(cell.strip() for cell in cells)
                continue
            if len(cells) < len(header):
                self.problems.append(
                    Problem(place, f"{len(cells)} columns, {len(header)} expected", f"columns: {', '.join(header)}")
                )
                yield place, None
                continue
            if quoted and any(cell.strip() for cell in cells[len(header) :]):  # a comma in words, and all cells shifted
                mend = 'put words with a comma in quotation marks: "..."'
                self.problems.append(Problem(place, f"{len(cells)} columns, {len(header)} expected", mend))
                yield place, None
                continue
            yield place, dict(zip(header, cells, strict=False))

    def _cells(self, lines: Any) -> Iterator[list[str]]:
        """The lines of a table; one that cannot be read ends the file and is noted."""
        csv.field_size_limit(LONGEST)
        try:
            yield from lines
        except csv.Error as error:
            self.problems.append(Problem(f"{self.path}:{lines.line_num}", f"not valid CSV: {error}"))

    def _parquet(self) -> Iterator[tuple[str, Any]]:
        from posttrain.data.arrow import parquet_rows  # pyarrow is slow to import

        return parquet_rows(self.path, [])


def load_json(text: str, path: Path) -> Any:
    """A whole JSON file; DataError with the line where it breaks off."""
    try:
        return parse_json(text)
    except BadJson as bad:
        place = f"{path}:{bad.line}" if bad.line else str(path)
        raise DataError(Problem(place, bad.cause, bad.mend)) from bad


def read_json(path: Path) -> Any:
    """A JSON file's value."""
    try:
        return load_json(read_text(path), path)
    except ConfigError as error:  # not UTF-8
        raise DataError(*error.problems) from error


def no_path(kind: str, what: str) -> ConfigError:
    """A task that needs a file was given none."""
    return ConfigError(Problem(kind, "'path' is missing", f"name {what}: {kind}=PATH, or path: in the YAML"))


def kind_of(value: Any) -> str:
    """What a value is, for people."""
    names = {
        str: "a text",
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def keys_of(row: Mapping[str, Any]) -> str:
    """The keys of a row, for people."""
    return ", ".join(map(str, row)) or "no keys"
