"""Parquet files, and the nulls that Arrow puts where a row has no value.

In Arrow every object of a column has the keys of all of them: a call `{"city": "Paris"}` beside a call `{"a": 1}` is
read as `{"city": "Paris", "a": None}`. Learned like that, a model calls with parameters of other functions. So a null
inside an object is taken for a key that the row does not have, and left out, except where it can be told that it stood
there:

- in a map and in JSON (Arrow's `json`, a text that holds JSON), where each object has keys of its own;
- in the arguments of a function whose schema, in the same row, requires the parameter, at any level of them;
- where no object of the column has a value for the key, and none of them lacks any other key: then no value was there
  to be left out. In arguments only those of the function itself are told so: keys that its schema knows; without a
  schema, all keys where the column calls one function.

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
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as parquet

from posttrain.config.json_text import BadJson, parse_json
from posttrain.data.fields import BadRow
from posttrain.data.parameters import Keys, Parameters, schemas_of
from posttrain.errors import DataError, MissingError, Problem

__all__ = ["Cleaner", "clean_rows", "parquet_rows"]

UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, NotImplementedError)
"""What reading a damaged file raises (UnicodeDecodeError is a ValueError)."""


@dataclass(frozen=True)
class Shape:
    """What a column's values are made of; real: keys of an object that have no value in any row, and of which no other
    row can have been the reason; several: the object is a call, and the column has calls of several functions.
    """

    kind: str
    inner: Shape | None = None
    fields: Mapping[str, Shape] = field(default_factory=dict)
    real: frozenset[str] = frozenset()
    several: bool = False


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
    return Shape("struct", None, fields, frozenset(empty) if whole else frozenset(), _several(kind, columns))


def _several(kind: pa.StructType, columns: Sequence[Sequence[pa.Array]]) -> bool:
    """Whether objects are calls of several functions."""
    names = {kind.field(i).name: i for i in range(kind.num_fields)}
    told = next((names[key] for key in ("arguments", "parameters") if key in names), None)
    if told is None or "name" not in names:
        return False
    called: set[Any] = set()
    for column in columns:
        called.update(column[names["name"]].filter(column[told].is_valid()).to_pylist())
    return len(called - {None}) > 1


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
        schemas = schemas_of(row)
        return {name: self._clean(value, self._shapes[name], schemas) for name, value in row.items()}

    def _clean(
        self, value: Any, shape: Shape, schemas: Mapping[str, Parameters], inside: Arguments | None = None
    ) -> Any:
        """inside: whether the value is in a call's arguments, and what is said of it there."""
        if value is None:
            return None
        if shape.kind == "json":
            return value if self._decoded or not isinstance(value, str) else parse_json(value)
        if shape.inner is not None and shape.kind == "list":
            items = inside and inside._replace(told=inside.told.items())
            return [self._clean(one, shape.inner, schemas, items) for one in value]
        if shape.inner is not None and shape.kind == "map":
            pairs = value.items() if isinstance(value, dict) else value
            keys = inside and inside.told.keys()
            return {
                str(key): self._clean(one, shape.inner, schemas, inside and inside.at(str(key), keys))
                for key, one in pairs
            }
        if shape.kind != "struct":
            return _as_json(value)
        called = schemas.get(str(value.get("name")), Parameters())
        keys = inside and inside.told.keys()
        found = {}
        for key, one in value.items():
            if one is None and not _stays(key, shape, inside, keys):
                self.left_out += 1
                continue
            there = inside and inside.at(key, keys)
            if inside is None and _are_arguments(key, one):
                there = Arguments(called, shape.several)
            found[key] = self._clean(one, shape.fields.get(key, LEAF), schemas, there)
        return found


class Arguments(NamedTuple):
    """A place in the arguments of a call: what its schema says there; several: the column calls others, too."""

    told: Parameters
    several: bool

    def at(self, key: str, keys: Keys | None) -> Arguments:
        """The value of a key of the object here."""
        return self._replace(told=self.told.at(key, keys))


def _stays(key: str, shape: Shape, inside: Arguments | None, keys: Keys | None) -> bool:
    """Whether a null stood in the row; keys: those that a schema names."""
    if keys is not None:
        return key in keys.required or (key in keys.known and key in shape.real)
    return key in shape.real and not (inside and inside.several)


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
