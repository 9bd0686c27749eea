"""The one reader of JSON: a value, or what is wrong and where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.config.json_text import BadJson, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\{}:', max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([None, 1]))
def test_what_has_no_key_twice_is_read(value: Any, indent: int | None) -> None:
    assert parse_json(json.dumps(value, indent=indent)) == value


@pytest.mark.parametrize(
    ("text", "key", "line", "column"),
    [
        ('{"a": 1, "a": 1}', "a", 1, 10),
        ('{"a": {"a": [{"b": 1}, {"b": 2}]}, "c": "{\\"a\\": 1}",\n "a": 3}', "a", 2, 2),
        ('[{"x": "\\\\"}, {"b": 1,\n\n   "b" : 2}]', "b", 3, 4),
        ('{"\\u0061": 1, "a": 2}', "a", 1, 15),
        ('{"": {"}": 1, "}": 2}}', "}", 1, 15),
    ],
)
def test_a_key_that_stands_twice(text: str, key: str, line: int, column: int) -> None:
    with pytest.raises(BadJson) as caught:
        parse_json(text)
    assert caught.value.cause == f"an object that has the key {key!r} twice"
    assert (caught.value.line, caught.value.column) == (line, column)
    assert caught.value.mend == "keep one of them"


def test_a_mark_of_the_bytes_order() -> None:
    with pytest.raises(BadJson, match="BOM"):
        parse_json("\ufeff{}")


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ('{"a": 1},', "remove the comma at the end"),
        ('{"a": 1} , ', "remove the comma at the end"),
        ('{"a": 1,}', "remove the comma before '}'"),
        ('{"a": [1, 2 , ], "b": 3}', "remove the comma before ']'"),
        ('[{"a": 1},\n]\n', "remove the comma before ']'"),
        ('{"a": ,}', ""),
        ("[,]", ""),
        ('{"a": 1}, {"b": 2}', ""),
        ('{"a": 1},,', ""),
        ('{"a": 1}}', ""),
        ('{"a": }', ""),
    ],
)
def test_a_comma_too_much(text: str, mend: str) -> None:
    with pytest.raises(BadJson) as caught:
        parse_json(text)
    assert caught.value.mend == mend
    assert caught.value.broken
    assert not caught.value.cut


@pytest.mark.parametrize(
    "text", ['{"a": 1', '{"a": 1,', '{"a": "x', '{"a": -', '{"a"', "[1,", '{"a": ,', '{"a": [1, {"b": 2}', '{"a":', ""]
)
def test_a_text_that_breaks_off(text: str) -> None:
    with pytest.raises(BadJson) as caught:
        parse_json(text)
    assert caught.value.cut
    assert caught.value.mend == ""
