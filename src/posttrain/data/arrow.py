"""Parquet files, and the nulls that Arrow puts where a row has no value.

In Arrow every object of a column has the keys of all of them: a call `{"city": "Paris"}` beside a call `{"a": 1}` is
read as `{"city": "Paris", "a": None}`. Learned like that, a model calls with parameters of other functions. So a null
inside an object is taken for a key that the row does not have, and left out, except where it can be told that it stood
there:

- in a map and in JSON (Arrow's `json`, a text that holds JSON), where each object has keys of its own;
- in the arguments of a function whose schema, in the same row, requires the parameter;
- where no object of the column has a value for the key, and none of them lacks any other key: then the key was
  brought by no other row.

Elements of lists are never filled in, so that a null among them stays. A column without a value is nothing, as in JSON.

Arrow has types that JSON has not. Dates, times and UUIDs become the texts that JSON has for them (`2024-01-01`),
decimals become numbers. What has no such form (bytes, durations, decimals of more digits than a number keeps) stays,
and is refused where it would be learned.
"""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from posttrain.config.json_text import BadJson, parse_json
from posttrain.data.fields import BadRow
from posttrain.errors import DataError, MissingError, Problem

__all__ = ["Cleaner", "clean_rows", "parquet_rows"]

UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, NotImplementedError)
"""What reading a damaged file raises (UnicodeDecodeError is a ValueError)."""


@dataclass(frozen=True)
class Shape:
    """What a column's values are made of; real: keys of an object whose nulls stood in the rows."""

    kind: str
    inner: Shape | None = None
    fields: Mapping[str, Shape] = field(default_factory=dict)
    real: frozenset[str] = frozenset()


LEAF = Shape("value")
LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def _shape(kind: pa.DataType, chunks: Sequence[pa.Array]) -> Shape:
    """The shape of a column's chunks, which are all of one type."""
    if isinstance(kind, pa.JsonType):
        return Shape("json")
    if isinstance(kind, pa.BaseExtensionType):
        return _shape(kind.storage_type, [chunk.storage for chunk in chunks])
    if pa.types.is_dictionary(kind):
        return LEAF
    if pa.types.is_map(kind):
        return Shape("map", _shape(kind.item_type, [chunk.items for chunk in chunks]))
    if any(is_one(kind) for is_one in LISTS):
        return Shape("list", _shape(kind.value_type, [chunk.flatten() for chunk in chunks]))
    if not pa.types.is_struct(kind):
        return LEAF
    there = [chunk.filter(chunk.is_valid()) for chunk in chunks]
    columns = [chunk.flatten() for chunk in there]
    fields: dict[str, Shape] = {}
    empty: set[str] = set()
    whole = True
    for i in range(kind.num_fields):
        one = kind.field(i)
        parts = [column[i] for column in columns]
        nulls = sum(part.null_count for part in parts)
        fields[one.name] = _shape(one.type, parts)
        if pa.types.is_null(one.type):
            empty.add(one.name)
        elif nulls:
            whole = False
    return Shape("struct", None, fields, frozenset(empty) if whole else frozenset())


class Cleaner:
    """Rows of a table as JSON would give them; left_out: how many nulls were taken for keys that are not there."""

    def __init__(self, table: pa.Table, *, decoded: bool = False) -> None:
        """decoded: JSON in the columns was read already (as `datasets` does)."""
        self.left_out = 0
        self._decoded = decoded
        self._shapes = {
            name: _shape(column.type, column.chunks)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row. BadJson where a column of JSON holds none."""
        required = _required(row)
        return {name: self._clean(value, self._shapes[name], required) for name, value in row.items()}

    def _clean(
        self, value: Any, shape: Shape, required: Mapping[str, frozenset[str]], kept: frozenset[str] = frozenset()
    ) -> Any:
        """kept: keys whose nulls stay, since a schema requires them."""
        if value is None:
            return None
        if shape.kind == "json":
            return value if self._decoded or not isinstance(value, str) else parse_json(value)
        if shape.inner is not None and shape.kind == "list":
            return [self._clean(one, shape.inner, required) for one in value]
        if shape.inner is not None and shape.kind == "map":
            pairs = value.items() if isinstance(value, dict) else value
            return {str(key): self._clean(one, shape.inner, required) for key, one in pairs}
        if shape.kind != "struct":
            return _as_json(value)
        asked = required.get(str(value.get("name")), frozenset())
        found = {}
        for key, one in value.items():
            if one is None and key not in shape.real and key not in kept:
                self.left_out += 1
            else:
                inside = asked if _are_arguments(key, one) else frozenset[str]()
                found[key] = self._clean(one, shape.fields.get(key, LEAF), required, inside)
        return found


def _are_arguments(key: str, value: Any) -> bool:
    """Whether a call's arguments stand there: Llama calls them `parameters`, as schemas call what they describe."""
    return key == "arguments" or (key == "parameters" and not (isinstance(value, dict) and "properties" in value))


def _as_json(value: Any) -> Any:
    """A value of a type that JSON has not as JSON would have it, where nothing is lost by that."""
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, decimal.Decimal):
        if value.as_tuple().exponent == 0:
            return int(value)
        return float(value) if decimal.Decimal(repr(float(value))) == value else value
    return value


def _required(row: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Function -> the parameters that its schema in this row requires, whatever the column of schemas is called."""
    found: dict[str, frozenset[str]] = {}
    for value in row.values():
        for tool in _tools(value):
            told = tool.get("function") if isinstance(tool, dict) and isinstance(tool.get("function"), dict) else tool
            schema = told.get("parameters") if isinstance(told, dict) else None
            names = schema.get("required") if isinstance(schema, dict) else None
            if isinstance(told, dict) and isinstance(names, list) and isinstance(told.get("name"), str):
                found[told["name"]] = frozenset(name for name in names if isinstance(name, str))
    return found


def _tools(value: Any) -> list[Any]:
    """A cell's schemas, as a list or as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("[") and '"required"' in value:
        try:
            value = parse_json(value)
        except BadJson:  # some text; where it is used, it is read again and complained about
            return []
    return value if isinstance(value, list) else []


def parquet_rows(path: Path, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """(place, row or BadRow) of each row of a Parquet file, classes by their names, counted from 1 (`rows.parquet[1]`).

    notes: gets a line when nulls were left out.
    """
    if not path.exists():
        raise MissingError(Problem(str(path), "no such file", f"looked in {path.parent.absolute()}"))
    try:
        table = parquet.read_table(path)
        cleaner = Cleaner(table)
        classes = _classes(table.schema)
        batches = [batch.to_pylist() for batch in table.to_batches(max_chunksize=1000)]
    except UNREADABLE as error:
        cause = f"not a Parquet file that can be read: {(str(error).splitlines() or ['damaged'])[0][:200]}"
        raise DataError(Problem(str(path), cause, "copy the file again, or write it again")) from error
    rows = (row for batch in batches for row in batch)
    placed = ((f"{path}[{number}]", row) for number, row in enumerate(rows, start=1))
    yield from clean_rows(placed, cleaner, classes, notes)


def clean_rows(
    placed: Iterable[tuple[str, Any]], cleaner: Cleaner, classes: Mapping[str, list[str] | None], notes: list[str]
) -> Iterator[tuple[str, Any]]:
    """(place, row or BadRow) of rows as Arrow has them, classes by their names; notes: as in `parquet_rows`."""
    for place, row in placed:
        try:
            clean = cleaner.row(row)
        except BadJson as bad:
            yield place, BadRow(bad.cause, bad.mend)
            continue
        yield place, {name: _named(value, classes.get(name)) for name, value in clean.items()}
    if cleaner.left_out:
        count = cleaner.left_out
        notes.append(
            f"{count:,} nulls inside objects are taken for keys that the rows do not have, as Parquet fills them in"
        )


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Columns whose numbers stand for classes, as `datasets` writes them, with the classes' names."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"]
    except (ValueError, KeyError, TypeError):  # another program's, or none
        return {}
    found = {}
    for name, one in features.items() if isinstance(features, dict) else ():
        inner = one.get("feature", one) if isinstance(one, dict) else None
        names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
        if isinstance(names, list):
            found[name] = [str(each) for each in names]
    return found


def _named(value: Any, names: list[str] | None) -> Any:
    """A class, or a list of them, by name; None for -1, of a test set that keeps its labels to itself."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    if not isinstance(value, int) or value >= len(names):
        return value
    return names[value] if value >= 0 else None
