"""Tables of text (CSV, TSV) to rows; each row's location is the line on which it begins.

A table's first line names its columns. Cells may hold commas, line breaks and quotation marks (RFC 4180). Columns may
be separated by semicolons or tabs too, as Excel does in many countries. An empty cell is None.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from posttrain.config.json_text import BadJson, parse_json
from posttrain.data.fields import BadRow
from posttrain.errors import DataError, Problem

__all__ = ["NO_ROWS_MEND", "TABLE_SUFFIXES", "Names", "TableRow", "table_rows", "typed"]

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
LONGEST = 2**31 - 1
"""Most characters of a cell; Python's default limit, 131,072, is less than a long text has."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
MEND = 'put a text with a comma, a line break or a quotation mark in quotation marks, and write " in it as ""'

NO_ROWS_MEND = "the first line names the columns, each line after it is a row"

Names: TypeAlias = Callable[[list[str]], Sequence[str] | None]
"""(cells of a table's first line) -> names of its columns where that line is a row; None where the line names them."""


class TableRow(dict[str, Any]):
    """A row whose cells are all text; `typed` converts numbers and truth values."""


def table_rows(
    text: str, name: str, *, tabs: bool, note: Callable[[str], None], quotes: bool = True, names: Names = lambda _: None
) -> Iterator[tuple[str, Any]]:
    """(location, TableRow or BadRow) of each row. DataError where the table itself cannot be read.

    tabs: columns are separated by tabs, unless the first line shows another separator; note: is told what was chosen;
    quotes: quotation marks group a cell; if not (GLUE's TSV files), cells beyond the named columns are left out.
    """
    skipped = 0
    if said := re.match(r'"?sep=(.)"?\r?\n', text):  # Excel's own first line
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
            yield location, BadRow(f"{len(cells)} columns, {len(header)} expected: {', '.join(header)}", MEND)
        else:
            pairs = zip(header, cells, strict=False)
            yield location, TableRow((column, _cell(cell)) for column, cell in pairs if column)
    if header and not rows:
        named = ", ".join(f"'{column}'" for column in header[:10] if column)
        raise DataError(Problem(name, f"the table has no rows: its only line names the columns {named}", NO_ROWS_MEND))


def _separator(text: str, usual: str, quotes: bool) -> str:
    """The separator of the names in the first line, text in quotation marks left out; the usual one if it is there."""
    names = text.lstrip("\r\n").split("\n", 1)[0]
    names = re.sub(r'"[^"]*"', "", names) if quotes else names
    if usual in names:
        return usual
    return max((one for one in SEPARATORS if one in names), key=names.count, default=usual)


def _records(text: str, name: str, separator: str, skipped: int, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of every record."""
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
            raise DataError(Problem(f"{name}:{first + skipped}", f"not valid CSV: {what}", MEND)) from error
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
    """The value of a cell: None, a text, or a conversation, which a table stores as JSON."""
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
    """The row with `margin` as a number and, if graded, `label` as a truth value; a wrong text stays as it is."""
    found = dict(row)
    margin = row.get("margin")
    if isinstance(margin, str):
        with suppress(ValueError):
            found["margin"] = float(margin)
    label = row.get("label")
    if graded and isinstance(label, str):
        found["label"] = TRUTH.get(label.strip().lower(), label)
    return found
