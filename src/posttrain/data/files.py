"""Read files row by row, each with its location: JSON Lines, a JSON array, CSV, TSV, Parquet, plain text, CoNLL, SQuAD.

The ending of the name says what a file is; `.gz` after it, that it is compressed. A row that cannot be read is returned
as a `BadRow`, so that the others can be used; a file that cannot be read raises DataError.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.config.json_text import BadJson, parse_json
from posttrain.config.load import read_text
from posttrain.data.conll import CONLL_MEND, CONLL_SUFFIXES, conll_rows
from posttrain.data.fields import BadRow
from posttrain.data.labelled import is_squad, squad_rows
from posttrain.data.tables import NO_ROWS_MEND, TABLE_SUFFIXES, Names, table_rows
from posttrain.errors import ConfigError, DataError, Problem

__all__ = ["ending_of", "file_rows", "json_lines", "rows_mend", "user_text"]

OTHERS = {
    **dict.fromkeys((".xlsx", ".xls"), "save the table as CSV UTF-8"),
    **dict.fromkeys((".arrow", ".feather", ".pkl"), "convert it to .parquet or .jsonl"),
    **dict.fromkeys((".zip", ".zst"), "unpack it"),
    **dict.fromkeys((".yaml", ".yml"), "write .jsonl: one JSON object per line"),
}
"""Endings of files that are not read, and what to do with them."""
JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson", ".jsonlines"})
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})


def ending_of(path: Path) -> str:
    """The ending that says what a file is, in lower case and without `.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def rows_mend(path: Path, *, tags: bool = False) -> str:
    """The mend for a file without rows: what a file of this kind should hold. tags: as for `file_rows`."""
    kind = ending_of(path)
    if kind in CONLL_SUFFIXES or (kind == ".txt" and tags):
        return CONLL_MEND
    if kind in TABLE_SUFFIXES:
        return NO_ROWS_MEND
    if kind == ".txt":
        return "write a document, or several with blank lines between them"
    return "write the rows" if kind in PARQUET_SUFFIXES else "one JSON object per line is expected"


def user_text(path: Path) -> str:
    """A data file as text. MissingError, or DataError where it is a folder or not UTF-8."""
    try:
        return read_text(path)
    except ConfigError as error:
        raise DataError(*error.problems) from error


def file_rows(
    path: Path, *, notes: list[str], tags: bool = False, quotes: bool = True, names: Names = lambda _: None
) -> Iterator[tuple[str, Any]]:
    """(location, row or BadRow) of every row.

    notes: gets what was chosen; tags: a .txt file holds tagged tokens, not text; quotes, names: as for `table_rows`.
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
    """Rows of a file whose name does not say what it holds; each problem says that it was read as JSON Lines."""
    ending = f"the ending '{kind}' is not known" if kind else "the name has no ending"
    notes.append(f"read as JSON Lines: {ending}")
    for location, row in rows:
        if isinstance(row, BadRow):
            mend = "end its name in .jsonl, .csv, .tsv, .parquet, .txt or .conll, as what it is"
            yield location, BadRow(f"{row.cause} (read as JSON Lines: {ending})", mend)
        else:
            yield location, row


def json_lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """(location, value or BadRow) of every line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: strings may hold U+2028 and U+0085
        line = line.strip(" \t\r")
        if not line:
            continue
        location = f"{name}:{number}"
        try:
            yield location, parse_json(line)
        except BadJson as bad:
            at = f" at column {bad.column}" if bad.column else ""
            if number == 1 and line in {"{", "["}:
                mend = "write each row on a line of its own (JSON Lines), not indented"
            else:
                mend = bad.mend or (
                    "the line seems to be cut off" if bad.cut else "one JSON object per line is expected"
                )
            yield location, BadRow(f"{bad.cause}{at}", mend)


def _array(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON array, counted from 1 (`rows.json[1]`); if every line is a value of its own, JSON Lines."""
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
    """Blocks of lines between blank lines: each is a document, and its location is its first line."""
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
