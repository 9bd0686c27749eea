"""Read files row by row, each with its location: JSON Lines, a JSON array, CSV, TSV, Parquet, plain text, CoNLL, SQuAD.

The ending of the name says what a file is, and `.gz` after it says that the file is compressed. A row that cannot be
read is returned as a `BadRow`, so that the others can be used. A file that cannot be read raises DataError.

A table's first line names its columns. Columns may also be separated by semicolons or tabs, as Excel does in many
countries. Cells may hold commas, line breaks and quotation marks (RFC 4180). An empty cell is None.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from posttrain.config.json_text import BadJson, parse_json
from posttrain.config.load import read_text
from posttrain.data.conll import CONLL_MEND, CONLL_SUFFIXES, conll_rows
from posttrain.data.fields import BadRow
from posttrain.data.labelled import is_squad, squad_rows
from posttrain.errors import ConfigError, DataError, Problem

__all__ = ["TRUTH", "Names", "TableRow", "ending_of", "file_rows", "json_lines", "rows_mend", "typed", "user_text"]

OTHERS = {
    **dict.fromkeys((".xlsx", ".xls"), "save the table as CSV UTF-8"),
    **dict.fromkeys((".arrow", ".feather", ".pkl"), "convert it to .parquet or .jsonl"),
    **dict.fromkeys((".zip", ".zst"), "unpack it"),
    **dict.fromkeys((".yaml", ".yml"), "write .jsonl: one JSON object per line"),
}
"""Ending of files that are not read -> the mend: what to do with such a file."""
JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson", ".jsonlines"})
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
LONGEST = 2**31 - 1
"""The most characters of a cell. Python's default limit, 131,072, is less than the length of some texts."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
CELL_MEND = 'put a text with a comma, a line break or a quotation mark in quotation marks, and write " in it as ""'

NO_ROWS_MEND = "the first line names the columns, each line after it is a row"

Names: TypeAlias = Callable[[list[str]], Sequence[str] | None]
"""(cells of a table's first line) -> the names of the columns if that line is a row, or None if the line names them."""


class TableRow(dict[str, Any]):
    """A row of a table. Its cells are text; `typed` converts numbers and truth values."""


def ending_of(path: Path) -> str:
    """Return the ending that says what a file is, in lower case and without `.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def rows_mend(path: Path, *, tags: bool = False) -> str:
    """Return the mend for a file without rows: what a file of this kind should hold. tags: as in `file_rows`."""
    kind = ending_of(path)
    if kind in CONLL_SUFFIXES or (kind == ".txt" and tags):
        return CONLL_MEND
    if kind in TABLE_SUFFIXES:
        return NO_ROWS_MEND
    if kind == ".txt":
        return "write a document, or several with blank lines between them"
    return "write the rows" if kind in PARQUET_SUFFIXES else "one JSON object per line is expected"


def user_text(path: Path) -> str:
    """Return a data file as text. Raise MissingError if there is none, and DataError if it is a folder or not UTF-8."""
    try:
        return read_text(path)
    except ConfigError as error:
        raise DataError(*error.problems) from error


def file_rows(
    path: Path, *, notes: list[str], tags: bool = False, quotes: bool = True, names: Names = lambda _: None
) -> Iterator[tuple[str, Any]]:
    """Return an iterator of (location, row or BadRow) of every row of a file. Raise DataError, MissingError.

    notes: a list to which the choices made in reading are added; tags: a .txt file holds tagged tokens, not text;
    quotes, names: as in `table_rows`.
    """
    kind = ending_of(path)
    if kind in OTHERS:
        raise DataError(Problem(str(path), f"{kind} files are not read", OTHERS[kind]))
    if kind in PARQUET_SUFFIXES:
        from posttrain.data.arrow import parquet_rows  # pyarrow is slow to import

        return parquet_rows(path, notes)
    text, name = user_text(path), str(path)
    if kind in CONLL_SUFFIXES or (kind == ".txt" and tags):
        return conll_rows(text, name, notes.append)
    if kind in TABLE_SUFFIXES:
        return table_rows(text, name, tabs=kind == ".tsv", note=notes.append, quotes=quotes, names=names)
    if kind == ".txt":
        return _documents(text, name)
    if kind == ".json" and is_squad(text):
        return squad_rows(text, name)
    rows = _array(text, name) if text.lstrip().startswith("[") else json_lines(text, name)
    if kind in JSON_SUFFIXES:
        return rows
    return _taken_for_json(rows, kind, notes)


def _taken_for_json(rows: Iterator[tuple[str, Any]], kind: str, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file with an unknown ending. Each problem says that the file was read as JSON Lines."""
    ending = f"the ending '{kind}' is not known" if kind else "the name has no ending"
    notes.append(f"read as JSON Lines: {ending}")
    for location, row in rows:
        if isinstance(row, BadRow):
            mend = "end its name in .jsonl, .csv, .tsv, .parquet, .txt or .conll, as what it is"
            yield location, BadRow(f"{row.cause} (read as JSON Lines: {ending})", mend)
        else:
            yield location, row


def json_lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (location, value or BadRow) of every line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: strings may hold U+2028 and U+0085
        line = line.strip(" \t\r")
        if not line:
            continue
        location = f"{name}:{number}"
        try:
            yield location, parse_json(line)
        except BadJson as bad:
            at = f" at column {bad.column}" if bad.column else ""
            mend = bad.mend or ("the line seems to be cut off" if bad.cut else "one JSON object per line is expected")
            if number == 1 and line in {"{", "["}:
                mend = "write each row on a line of its own (JSON Lines), not indented"
            yield location, BadRow(f"{bad.cause}{at}", mend)


def _array(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a JSON array, counted from 1 (`rows.json[1]`), or of JSON Lines if there are several values.
    Raise DataError when the text is not valid JSON."""
    try:
        rows = parse_json(text)
    except BadJson as bad:
        if "Extra data" in bad.cause:
            yield from json_lines(text, name)
            return
        location = f"{name}:{bad.line}" if bad.line else name
        mend = bad.mend or (
            "the file seems to be cut off" if bad.cut else "an array of objects is expected: [{...}, ...]"
        )
        raise DataError(Problem(location, bad.cause, mend)) from bad
    yield from ((f"{name}[{number}]", row) for number, row in enumerate(rows, start=1))


def _documents(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the blocks of lines between blank lines. Each is a document, and its location is its first line."""
    block: list[str] = []
    first = 1
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        line = line.rstrip("\r")
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield f"{name}:{first}", {"text": "\n".join(block)}
            block = []


# ---- tables ----------------------------------------------------------------------------------------------------------


def table_rows(
    text: str, name: str, *, tabs: bool, note: Callable[[str], None], quotes: bool = True, names: Names = lambda _: None
) -> Iterator[tuple[str, Any]]:
    """Yield (location, TableRow or BadRow) of each row. Raise DataError when the table itself cannot be read.

    tabs: tabs separate the columns, unless the first line shows another separator; note: is called with each choice
    that was made; quotes: quotation marks enclose a cell. Without quotes (GLUE's TSV files), cells after the named
    columns are left out. names: gives the names of the columns if the first line is a row.
    """
    skipped = 0
    if said := re.match(r'"?sep=(.)"?\r?\n', text):  # the line that Excel writes first
        separator, text, skipped = said[1], text[said.end() :], 1
    else:
        separator = _separator(text, "\t" if tabs else ",", quotes)
    if separator != ("\t" if tabs else ","):
        note(f"the columns are separated by {SEPARATORS.get(separator, repr(separator))}")
    header: list[str] | None = None
    rows = 0
    for line, cells in _records(text, name, separator, skipped, quotes):
        if not any(cell.strip() for cell in cells):
            continue  # spreadsheets leave empty lines
        location = f"{name}:{line}"
        if header is None:
            given = names(cells)
            header = _header(cells if given is None else list(given), location)
            if given is None:
                continue
        rows += 1
        if len(cells) < len(header) or (quotes and any(cell.strip() for cell in cells[len(header) :])):
            yield location, BadRow(f"{len(cells)} columns, {len(header)} expected: {', '.join(header)}", CELL_MEND)
        else:
            pairs = zip(header, cells, strict=False)
            yield location, TableRow((column, _cell(cell)) for column, cell in pairs if column)
    if header and not rows:
        named = ", ".join(f"'{column}'" for column in header[:10] if column)
        raise DataError(Problem(name, f"the table has no rows: its only line names the columns {named}", NO_ROWS_MEND))


def _separator(text: str, usual: str, quotes: bool) -> str:
    """Return the separator of the names in the first line: the usual one if it occurs, else the most frequent one. Text
    in quotation marks is ignored if quotes."""
    names = text.lstrip("\r\n").split("\n", 1)[0]
    names = re.sub(r'"[^"]*"', "", names) if quotes else names
    if usual in names:
        return usual
    return max((one for one in SEPARATORS if one in names), key=names.count, default=usual)


def _records(text: str, name: str, separator: str, skipped: int, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, cells) of every record. Raise DataError when the text is not valid CSV."""
    csv.field_size_limit(LONGEST)
    try:
        lines = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=separator,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        )
    except (TypeError, ValueError) as error:
        cause = f"{separator!r} cannot separate columns"
        raise DataError(Problem(f"{name}:1", cause, "sep=, or sep=; is expected")) from error
    first = 1
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as error:
            what = "a quotation mark is opened and never closed" if "end of data" in str(error) else str(error)
            raise DataError(Problem(f"{name}:{first + skipped}", f"not valid CSV: {what}", CELL_MEND)) from error
        if cells is None:
            return
        yield first + skipped, cells
        first = lines.line_num + 1


def _header(cells: list[str], location: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(Problem(location, f"two columns are called '{twice[0]}'", "give each its own name"))
    return names


def _cell(cell: str) -> Any:
    """Return the value of a cell: None, a text, or a conversation, which a table stores as JSON."""
    if not cell.strip():
        return None
    if cell.lstrip().startswith("[") and ('"role"' in cell or '"from"' in cell):
        try:
            value = parse_json(cell)
        except BadJson:
            return cell
        keys = [set(one) for one in value if isinstance(one, dict)] if isinstance(value, list) else []
        if keys and len(keys) == len(value) and all({"role", "content"} <= k or {"from", "value"} <= k for k in keys):
            return value
    return cell


TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def typed(row: Mapping[str, Any], *, graded: bool) -> Mapping[str, Any]:
    """Return the row with `margin` as a number and, if graded, `label` as a truth value. Other text is not changed."""
    found = dict(row)
    margin = row.get("margin")
    if isinstance(margin, str):
        with suppress(ValueError):
            found["margin"] = float(margin)
    label = row.get("label")
    if graded and isinstance(label, str):
        found["label"] = TRUTH.get(label.strip().lower(), label)
    return found
