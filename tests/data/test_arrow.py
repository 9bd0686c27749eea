"""Nulls of Parquet files and data sets: the same rows give the same records whatever file they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from posttrain.data.arrow import Cleaner
from posttrain.data.readers import DataSource, ReadResult, read_records, record_of
from posttrain.data.records import Conversation, LabelledText, Record
from posttrain.errors import DataError


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str, required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    told = {key: value or {"type": "string"} for key, value in properties.items()}
    schema = {"type": "object", "properties": told} | ({} if required is None else {"required": required})
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def row(*calls: dict[str, Any], tools: Any = None) -> dict[str, Any]:
    said = {"role": "assistant", "content": None, "tool_calls": list(calls)}
    given = {} if tools is None else {"tools": tools}
    return {"messages": [{"role": "user", "content": "?"}, said, {"role": "assistant", "content": "!"}], **given}


def as_parquet(tmp_path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> ReadResult:
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "r.parquet")
    return read_records(DataSource(path=str(tmp_path / "r.parquet")))


def as_jsonl(tmp_path: Path, rows: list[dict[str, Any]]) -> ReadResult:
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_records(DataSource(path=str(tmp_path / "r.jsonl")))


def without_place(records: list[Record]) -> list[Any]:
    assert all(isinstance(record, Conversation) for record in records)
    return [(r.messages, r.tools) for r in records if isinstance(r, Conversation)]


def arguments(result: ReadResult) -> list[Any]:
    return [
        made["function"]["arguments"]
        for record in result.records
        if isinstance(record, Conversation)
        for made in record.messages[1].tool_calls or ()
    ]


PLACE: dict[str, Any] = {
    "type": "object",
    "properties": {"zip": {"type": "string"}, "city": {"type": "string"}},
    "required": ["zip", "city"],
}
REFERRING: dict[str, Any] = tool("f", ["loc"], loc={"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]})
REFERRING["function"]["parameters"]["$defs"] = {
    "place": {**PLACE, "properties": {**PLACE["properties"], "next": {"$ref": "#/$defs/place"}}}
}

SAME: dict[str, list[dict[str, Any]]] = {
    "arguments of two functions": [row(call("weather", city="Paris")), row(call("add", a=1, b=2))],
    "two calls in one message": [row(call("weather", city="Paris"), call("add", a=1))],
    "an optional argument": [row(call("weather", city="Paris")), row(call("weather", city="Oslo", unit="C"))],
    "objects in arguments": [row(call("f", where={"city": "a"})), row(call("f", where={"x": 1.5, "y": {"z": 2}}))],
    "objects in lists": [row(call("f", items=[{"a": 1}, {"b": 2}, {"a": 3, "b": 4}])), row(call("f", items=[]))],
    "no arguments at all": [row(call("f", a=1)), row(call("g", b="x"))],
    "a null in a list": [row(call("f", values=[1, None, 2])), row(call("g", b=1))],
    "schemas of two tools": [
        row(call("weather", city="Paris"), tools=[tool("weather", ["city"], city={"type": "string"})]),
        row(call("add", a=1), tools=[tool("add", a={"type": "number", "minimum": 0}), tool("sub", b={"enum": ["x"]})]),
    ],
    "schemas, or none": [row(call("f", a=1), tools=[tool("f", a={"type": "number"})]), row(call("g", b=1))],
    "a null that its schema requires": [
        row(
            call("weather", city="Paris", unit=None),
            call("add", a=1),
            tools=[
                tool("weather", ["city", "unit"], city={}, unit={}),
                tool("add", ["a"], a={}),
            ],
        ),
        row(call("weather", city="Oslo", unit="C"), tools=[tool("weather", ["city", "unit"], city={}, unit={})]),
    ],
    "nulls that no other row can have brought": [row(call("f", a=1, b=None)), row(call("f", a=2, b=None))],
    "a null in the only row": [row(call("f", a=1, b=None))],
    "a null that a schema requires in an object": [
        row(call("f", loc={"zip": None, "city": "x"}), tools=[tool("f", loc=PLACE)]),
        row(call("f", loc={"zip": "1"}), tools=[tool("f", loc={**PLACE, "required": ["zip"]})]),
    ],
    "a null that a schema requires in objects of a list": [
        row(
            call("f", stops=[{"zip": None, "city": "x"}, {"city": "y", "zip": None}]),
            tools=[tool("f", stops={"type": "array", "items": PLACE})],
        ),
        row(call("f", stops=[{"zip": "1", "city": None}]), tools=[tool("f", stops={"type": "array", "items": PLACE})]),
    ],
    "a null that a schema requires by reference": [
        row(call("f", loc={"zip": None, "city": "x"}), tools=[REFERRING]),
        row(call("f", loc={"zip": "1", "city": "y", "next": {"zip": None, "city": "z"}}), tools=[REFERRING]),
    ],
    "schemas as JSON text": [
        row(call("f", loc={"zip": None, "city": "x"}), tools=json.dumps([REFERRING])),
        row(call("f", loc={"zip": "1", "city": "y"}), tools=json.dumps([REFERRING])),
    ],
    "a null that the function's schema knows, and another's does not": [
        row(call("w", city="P", unit=None), tools=[tool("w", city={}, unit={"type": "string"})]),
        row(call("v", city="R"), tools=[tool("v", city={})]),
    ],
    "a null in an object that one schema knows": [
        row(
            call("w", at={"city": "P", "unit": None}),
            tools=[tool("w", at=tool("", city={}, unit={})["function"]["parameters"])],
        ),
        row(call("v", at={"city": "R"}), tools=[tool("v", at=tool("", city={})["function"]["parameters"])]),
    ],
    "Llama's parameters": [
        row(
            {"function": {"name": "weather", "parameters": {"city": "Paris", "unit": None}}},
            tools=[tool("weather", ["city", "unit", "type"], city={}, unit={}, type={})],
        ),
        row({"function": {"name": "add", "parameters": {"a": 1}}}, tools=[{"name": "add"}]),
    ],
}


@pytest.mark.parametrize("rows", SAME.values(), ids=SAME.keys())
def test_parquet_gives_what_jsonl_gives(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    expected = without_place(as_jsonl(tmp_path, rows).records)
    assert without_place(as_parquet(tmp_path, rows).records) == expected


def with_lists(kind: pa.DataType, make: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type whose lists are all of another kind."""
    if pa.types.is_list(kind):
        return make(with_lists(kind.value_type, make))
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([(one.name, with_lists(one.type, make)) for one in fields])
    return kind


@pytest.mark.parametrize("rows", SAME.values(), ids=SAME.keys())
@pytest.mark.parametrize("make", [pa.large_list, pa.list_view, pa.large_list_view])
def test_so_do_lists_of_every_kind(tmp_path: Path, rows: list[dict[str, Any]], make: Any) -> None:
    made = pa.Table.from_pylist(rows).schema
    schema = pa.schema([(one.name, with_lists(one.type, make)) for one in made])
    assert schema.field("messages").type == make(schema.field("messages").type.value_type)
    cleaner = Cleaner(table := pa.Table.from_pylist(rows, schema=schema))
    wanted = [(m.messages, m.tools) for m in map(record, rows)]
    assert [(m.messages, m.tools) for m in (record(cleaner.row(one)) for one in table.to_pylist())] == wanted
    part = table.slice(len(rows) - 1)
    assert [record(Cleaner(part).row(one)).messages for one in part.to_pylist()] == [wanted[-1][0]]
    assert without_place(as_parquet(tmp_path, rows, schema).records) == wanted


def record(row: dict[str, Any]) -> Conversation:
    made = record_of(row, "")
    assert isinstance(made, Conversation)
    return made


@pytest.mark.parametrize("rows", SAME.values(), ids=SAME.keys())
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_so_does_a_data_set(
    tmp_path: Path, rows: list[dict[str, Any]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    else:
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    expected = without_place(as_jsonl(tmp_path, rows).records)
    assert without_place(read_records(DataSource(hub=str(folder))).records) == expected


def test_whose_null_it_is(tmp_path: Path) -> None:
    """No row has a value for the key: without schemas, another function may have brought it, or another row's object."""
    two = [row(call("w", city="P", unit=None)), row(call("v", city="R"))]
    assert arguments(as_parquet(tmp_path, two)) == [{"city": "P"}, {"city": "R"}]
    nested = [row(call("w", at={"city": "P", "unit": None})), row(call("v", at={"city": "R"}))]
    assert arguments(as_parquet(tmp_path, nested)) == [{"at": {"city": "P"}}, {"at": {"city": "R"}}]
    # of one function: all objects have it, or none
    one = [row(call("f", a=None, b=1)), row(call("f", b=2))]
    assert arguments(as_parquet(tmp_path, one)) == [{"a": None, "b": 1}, {"a": None, "b": 2}]
    # a schema that does not know the key
    told = [row(call("f", a=None, b=1), tools=[tool("f", b={})]), row(call("f", b=2), tools=[tool("f", b={})])]
    assert arguments(as_parquet(tmp_path, told)) == [{"b": 1}, {"b": 2}]
    # an object of any keys, of which the schema says nothing
    free = tool("f", o={"type": "object"})
    rows = [row(call("f", o={"a": None, "b": 1}), tools=[free]), row(call("f", o={"a": None, "b": 2}), tools=[free])]
    assert arguments(as_parquet(tmp_path, rows)) == [{"o": {"a": None, "b": 1}}, {"o": {"a": None, "b": 2}}]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    result = as_parquet(tmp_path, [row(call("weather", city="Paris")), row(call("add", a=1, b=2))])
    assert arguments(result) == [{"city": "Paris"}, {"a": 1, "b": 2}]
    assert len(result.notes) == 1
    assert "nulls inside objects are taken for keys that the rows do not have" in result.notes[0]
    assert as_parquet(tmp_path, [{"text": "a"}]).notes == ()


def test_nulls_of_maps_and_of_json_stay(tmp_path: Path) -> None:
    given = [call("f", city="Paris", unit=None), call("g", a=None)]
    texts = [json.dumps(one["function"]["arguments"]) for one in given]
    # arguments as JSON text, as OpenAI has them: nothing can be filled in
    named = [{"type": "function", "function": {"name": "f", "arguments": text}} for text in texts]
    assert arguments(as_parquet(tmp_path, [row(one) for one in named])) == texts
    # a column of maps
    function = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.string()))])
    turn = pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("tool_calls", pa.list_(pa.struct([("type", pa.string()), ("function", function)]))),
        ]
    )
    schema = pa.schema([("messages", pa.list_(turn))])
    found = as_parquet(tmp_path, [row(one) for one in given], schema)
    assert arguments(found) == [{"city": "Paris", "unit": None}, {"a": None}]
    # Arrow's JSON, which `datasets` writes where rows differ in their types
    whole = [row(one) for one in given]
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array([json.dumps(one["messages"]) for one in whole]))
    parquet.write_table(pa.table({"messages": column}), tmp_path / "j.parquet")
    assert arguments(read_records(DataSource(path=str(tmp_path / "j.parquet")))) == [
        {"city": "Paris", "unit": None},
        {"a": None},
    ]


def test_keys_that_another_part_of_the_data_set_brought(tmp_path: Path) -> None:
    """A part of a data set has the types of the whole: a parameter may have no value in any of its rows."""
    arguments_of_all = pa.struct([("city", pa.string()), ("a", pa.int64())])
    function = pa.struct([("name", pa.string()), ("arguments", arguments_of_all)])
    turn = pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("tool_calls", pa.list_(pa.struct([("type", pa.string()), ("function", function)]))),
        ]
    )
    found = as_parquet(tmp_path, [row(call("weather", city="Paris"))], pa.schema([("messages", pa.list_(turn))]))
    assert arguments(found) == [{"city": "Paris"}]


def test_a_null_of_jsonl_stays(tmp_path: Path) -> None:
    found = as_jsonl(tmp_path, [row(call("f", city="Paris", unit=None)), row(call("g", a=1))])
    assert arguments(found) == [{"city": "Paris", "unit": None}, {"a": 1}]


def test_classes_of_a_parquet_file_have_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    made = datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": -1}], features=features)
    made.to_parquet(str(tmp_path / "r.parquet"))
    found = read_records(DataSource(path=str(tmp_path / "r.parquet"), format="labels")).records
    assert [(r.labels, r.gold) for r in found if isinstance(r, LabelledText)] == [(("good",), True), ((), False)]


def test_types_that_json_has_not(tmp_path: Path) -> None:
    taipei = timezone(timedelta(hours=8))
    given = {
        "day": date(2024, 1, 1),
        "at": datetime(2024, 1, 1, 12, 30),
        "zoned": datetime(2024, 1, 1, 12, 30, tzinfo=taipei),
        "time": time(9, 5),
        "price": Decimal("1.50"),
        "count": Decimal("7"),
        "all": [date(2024, 1, 2)],
    }
    written = {
        "day": "2024-01-01",
        "at": "2024-01-01T12:30:00",
        "zoned": "2024-01-01T12:30:00+08:00",
        "time": "09:05:00",
        "price": 1.5,
        "count": 7,
        "all": ["2024-01-02"],
    }
    (found,) = arguments(as_parquet(tmp_path, [row(call("f", **given))]))
    assert found == written
    assert isinstance(found["count"], int)
    assert isinstance(found["price"], float)
    (tmp_path / "hub").mkdir()
    parquet.write_table(pa.Table.from_pylist([row(call("f", **given))]), tmp_path / "hub" / "r.parquet")
    (found,) = arguments(read_records(DataSource(hub=str(tmp_path / "hub"))))
    assert found == written


@pytest.mark.parametrize(
    ("value", "kind"),
    [(b"abc", "bytes"), (timedelta(1), "timedelta"), (Decimal("12345678901234567890.5"), "Decimal")],
)
def test_what_json_cannot_say_is_a_bad_row(tmp_path: Path, value: Any, kind: str) -> None:
    with pytest.raises(DataError) as error:
        as_parquet(tmp_path, [row(call("f", v=[value]))])
    assert error.value.problems[0].location == f"{tmp_path}/r.parquet[1]"
    assert error.value.problems[0].cause == (
        f"messages[1].tool_calls holds a value of the type {kind}, which is not JSON"
    )
    # where nobody reads it, it does no harm
    assert len(as_parquet(tmp_path, [{**row(call("f", v=1)), "image": value}]).records) == 1
