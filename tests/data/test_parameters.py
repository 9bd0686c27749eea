"""Keys of arguments as schemas name them."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.data.calls import Parameters, schemas_of


def keys(schema: Any) -> tuple[list[str], list[str]] | None:
    """The keys that are known, and those that are required."""
    found = Parameters(schema, schema).keys()
    return None if found is None else (sorted(found.known), sorted(found.required))


A = {"properties": {"a": {}, "x": {}}, "required": ["a"]}
B = {"properties": {"b": {}, "x": {}}, "required": ["b", "x"]}
LOOP = {"$defs": {"n": {"$ref": "#/$defs/n"}}, "$ref": "#/$defs/n"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, (["a", "x"], ["a"])),
        ({"properties": {"a": {}, "filled": None}, "required": None, "anyOf": None, "$ref": None}, (["a"], [])),
        ({"properties": {}}, ([], [])),
        ({"required": ["a"]}, ([], ["a"])),
        ({"allOf": [A, B]}, (["a", "b", "x"], ["a", "b", "x"])),
        ({"anyOf": [A, B]}, (["a", "b", "x"], [])),
        ({"oneOf": [B, {"type": "null"}]}, (["b", "x"], ["b", "x"])),
        ({"$defs": {"a/b": A}, "$ref": "#/$defs/a~1b", "required": ["x"]}, (["a", "x"], ["a", "x"])),
        ({"$ref": "#/$defs/none"}, None),
        ({"$ref": "https://example.org/s"}, None),
        (LOOP, None),
        ({"type": "object"}, None),
        (True, None),
        (None, None),
    ],
)
def test_keys(schema: Any, expected: tuple[list[str], list[str]] | None) -> None:
    assert keys(schema) == expected


def test_places_within() -> None:
    whole = {"properties": {"list": {"$ref": "#/$defs/l"}}, "additionalProperties": B, "$defs": {"l": {"items": A}}}
    top = Parameters(whole, whole)
    items = top.at("list", top.keys()).items().keys()
    assert items is not None
    assert items.required == {"a"}
    others = top.at("any", top.keys()).keys()
    assert others is not None
    assert others.required == {"b", "x"}
    assert Parameters().at("a", None).items().keys() is None


def test_schemas_of_a_row() -> None:
    bare = {"name": "f", "parameters": A}
    assert set(schemas_of({"t": [{"function": bare}, {"name": "g", "parameters": {"type": "object"}}]})) == {"f"}
    assert set(schemas_of({"t": bare})) == {"f"}
    assert set(schemas_of({"t": '[{"name": "f", "parameters": {"properties": {}}}]'})) == {"f"}
    assert schemas_of({"t": '["parameters"', "messages": [{"role": "user"}], "text": "a"}) == {}
