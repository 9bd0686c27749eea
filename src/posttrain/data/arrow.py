"""Read Parquet files and data sets of the hub, without the nulls that Arrow inserts where a row has no value.

In Arrow every object of a column has the keys of all objects. If one row has a call `{"city": "Paris"}` and another
`{"a": 1}`, the first is read as `{"city": "Paris", "a": None}`, and a model would learn to call with parameters of
other functions. So a key with null in an object is removed, unless the null must have been in the row:

- in a map and in JSON (Arrow's `json`, a text that holds JSON), where each object has keys of its own;
- in the arguments of a call, at any level, if the function's schema in the same row requires the parameter;
- where no object of the column has a value for the key, and all objects have values for all other keys: then Arrow had
  no reason to insert nulls. In arguments this holds only for keys in the function's schema; without a schema, for all
  keys if the column calls one function only.

A null in a list and a null column stay, as in JSON. Dates, times and UUIDs become text (`2024-01-01`), and decimals
become numbers. A value that JSON cannot express (bytes, durations, decimals with more digits than a number keeps) stays
as it is, and is refused if it would be learned.
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
from posttrain.data.calls import Keys, Parameters, schemas_of
from posttrain.data.fields import BadRow
from posttrain.errors import DataError, MissingError, Problem

__all__ = ["hub_rows", "parquet_rows"]

UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, NotImplementedError)
"""The errors that reading a damaged file raises (UnicodeDecodeError is a ValueError)."""


@dataclass(frozen=True)
class Shape:
    """The nested type of a column's values. real: keys of an object that are null in every row although Arrow had no
    reason to insert nulls; several: the object is a call, and the column has calls of several functions."""

    kind: str
    inner: Shape | None = None
    fields: Mapping[str, Shape] = field(default_factory=dict)
    real: frozenset[str] = frozenset()
    several: bool = False


LEAF = Shape("value")
LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)


def _shape(kind: pa.DataType, chunks: Sequence[pa.Array]) -> Shape:
    """Return the shape of a column, from its type and its chunks."""
    if isinstance(kind, pa.JsonType):
        return Shape("json")
    if isinstance(kind, pa.BaseExtensionType):
        return _shape(kind.storage_type, [chunk.storage for chunk in chunks])
    if pa.types.is_dictionary(kind):
        return LEAF
    if pa.types.is_map(kind):
        return Shape("map", _shape(kind.item_type, [chunk.items for chunk in chunks]))
    if isinstance(kind, LISTS):
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
    """Return whether the objects are calls of more than one function."""
    names = {kind.field(i).name: i for i in range(kind.num_fields)}
    told = next((names[key] for key in ("arguments", "parameters") if key in names), None)
    if told is None or "name" not in names:
        return False
    called: set[Any] = set()
    for column in columns:
        called.update(column[names["name"]].filter(column[told].is_valid()).to_pylist())
    return len(called - {None}) > 1


class Cleaner:
    """Converts rows of a table to the values that JSON would give. left_out: how many keys with null were removed."""

    def __init__(self, table: pa.Table, *, decoded: bool = False) -> None:
        """Read the shapes of the table's columns. decoded: JSON columns are parsed already (as `datasets` does)."""
        self.left_out = 0
        self._decoded = decoded
        self._shapes = {
            name: _shape(column.type, column.chunks)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return one row, converted. Raise BadJson when a JSON column has invalid JSON."""
        schemas = schemas_of(row)
        return {name: self._clean(value, self._shapes[name], schemas) for name, value in row.items()}

    def _clean(
        self, value: Any, shape: Shape, schemas: Mapping[str, Parameters], inside: Arguments | None = None
    ) -> Any:
        """Return a value, converted. inside: set when the value is in the arguments of a call, with its schema."""
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
    """A value in the arguments of a call. told: its schema; several: the column calls other functions too."""

    told: Parameters
    several: bool

    def at(self, key: str, keys: Keys | None) -> Arguments:
        """Return the value of a key of this object, with its schema."""
        return self._replace(told=self.told.at(key, keys))


def _stays(key: str, shape: Shape, inside: Arguments | None, keys: Keys | None) -> bool:
    """Return whether a null was in the row itself. keys: the keys that a schema names, None without a schema."""
    if keys is not None:
        return key in keys.required or (key in keys.known and key in shape.real)
    return key in shape.real and not (inside and inside.several)


def _are_arguments(key: str, value: Any) -> bool:
    """Return whether a key has a call's arguments. Llama calls them `parameters`, which is also a key of schemas."""
    return key == "arguments" or (key == "parameters" and not (isinstance(value, dict) and "properties" in value))


def _as_json(value: Any) -> Any:
    """Return a value of a type that JSON does not have, converted if no information is lost."""
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
    """Yield (location, row or BadRow) of each row of a Parquet file, from `rows.parquet[1]` on, with classes as names.

    notes: a list that gets a line when keys with null were removed. Raise MissingError, or DataError if the file cannot
    be read.
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
    yield from _cleaned(placed, cleaner, classes, notes)


def hub_rows(
    hub: str, subset: str | None, split: str, *, download: bool, notes: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yield (location, row or BadRow) of each row of a data set of the Hugging Face hub, or of a folder in its layout.
    Raise MissingError when it is not found, and DataError for an unknown split or subset or an unreadable file.
    """
    import datasets  # slow to import

    local = Path(hub).expanduser().is_dir()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not (download or local)
    progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(hub, subset, split=split)
    except OSError as error:
        mend = "check the name and the network" if download else "--download allows fetching it from the hub"
        raise MissingError(Problem(hub, f"the data set cannot be read: {_line(error)}", mend)) from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        # an unknown split or configuration (the message lists the known ones), or a file that cannot be read
        raise DataError(Problem(hub, _line(error))) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        if progress:
            datasets.enable_progress_bars()
    inner = {name: one.feature if isinstance(one, datasets.List) else one for name, one in rows.features.items()}
    classes = {name: list(one.names) for name, one in inner.items() if isinstance(one, datasets.ClassLabel)}
    cleaner = Cleaner(rows.data.table, decoded=True)
    placed = ((f"{hub}[{split}]:{number}", row) for number, row in enumerate(rows))
    yield from _cleaned(placed, cleaner, classes, notes)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _cleaned(
    placed: Iterable[tuple[str, Any]], cleaner: Cleaner, classes: Mapping[str, list[str]], notes: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yield (location, row or BadRow) of Arrow's rows, with classes as names. notes: as in `parquet_rows`."""
    for location, row in placed:
        try:
            clean = cleaner.row(row)
        except BadJson as bad:
            yield location, BadRow(bad.cause, bad.mend)
            continue
        yield location, {name: _named(value, classes.get(name)) for name, value in clean.items()}
    if cleaner.left_out:
        count = cleaner.left_out
        notes.append(
            f"{count:,} nulls inside objects are taken for keys that the rows do not have, as Parquet fills them in"
        )


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Return column -> the names of the classes that its numbers stand for, as `datasets` stores them in the file."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"]
    except (ValueError, KeyError, TypeError):  # written by another program
        return {}
    found = {}
    for name, one in features.items() if isinstance(features, dict) else ():
        inner = one.get("feature", one) if isinstance(one, dict) else None
        names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
        if isinstance(names, list):
            found[name] = [str(each) for each in names]
    return found


def _named(value: Any, names: list[str] | None) -> Any:
    """Return a class, or a list of classes, as names. Return None for -1, which a test set without labels has."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    if not isinstance(value, int) or value >= len(names):
        return value
    return names[value] if value >= 0 else None
