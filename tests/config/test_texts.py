"""JSON and YAML of users' files: whatever stands in them gives a value or an error with a location."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.config.change import load_change
from posttrain.config.encoding import guess
from posttrain.config.json_text import DEEPEST, BadJson, parse_json
from posttrain.config.load import parse_value, read_yaml
from posttrain.config.yaml_text import parse_yaml, plain
from posttrain.errors import ConfigError


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (nested(DEEPEST + 1), f"brackets nested more than {DEEPEST} levels deep"),
        (nested(5000), f"brackets nested more than {DEEPEST} levels deep"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, f"brackets nested more than {DEEPEST} levels deep"),
        ("[" * 100_000, f"brackets nested more than {DEEPEST} levels deep"),
        ("1" * 5000, "a number with too many digits"),
        (r'{"a": ["\ud83d"]}', r"\ud83d is half of a character"),
        (r'{"\uDE00": 1}', r"\ude00 is half of a character"),
        (r'"\ude00\ud83d"', r"\ude00 is half of a character"),
        ('{"a": 1} x', "not valid JSON: Extra data"),
        ("", "not valid JSON: Expecting value"),
    ],
)
def test_json_that_cannot_be_used(text: str, cause: str) -> None:
    with pytest.raises(BadJson) as error:
        parse_json(text)
    assert error.value.cause == cause


def test_json_that_can(tmp_path: Path) -> None:
    assert parse_json(r'["\ud83d\ude00", "\\ud83d", "é"]') == ["😀", r"\ud83d", "é"]
    value: Any = parse_json(nested(DEEPEST))
    for _ in range(DEEPEST - 1):
        (value,) = value
    assert value == []
    assert parse_json("[" + ",".join(["[1]"] * 1000) + "]") == [[1]] * 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: " + nested(3000), f"x.yaml:2: brackets nested more than {DEEPEST} levels deep"),
        ("a: 1\nb: " + nested(DEEPEST + 1), f"x.yaml:2: brackets nested more than {DEEPEST} levels deep"),
        ("\n".join(" " * i + "a:" for i in range(1500)), f"brackets nested more than {DEEPEST} levels deep"),
        ('a: 1\nb: "\\ud83d"', r"x.yaml:2: \ud83d is half of a character; write the whole character"),
        ('a: 1\nb:\n  - x\n  - "\\ud83d"', r"x.yaml:4: \ud83d is half of a character"),
        ('a: 1\n"\\ud83d": 2', r"\ud83d is half of a character"),
        ('"\\ud83d"', r"x.yaml:1: \ud83d is half of a character"),
        ("a: 2001-99-99", "x.yaml: a value that cannot be read: month must be in 1..12; put the value in quotation marks"),
        ("a: " + "9" * 5000, "x.yaml: a value that cannot be read: Exceeds the limit"),
        ("a: !!bool x", "x.yaml: a value that cannot be read: 'x'"),
        ("a: 0x_", "x.yaml: a value that cannot be read"),
        ("a: 1\n? [b]\n: 2", "x.yaml:1: a key is a mapping or a list; a key is a word, then a colon"),
        ("a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
         + "\n".join(f"{c}: &{c} [{','.join([f'*{p}'] * 10)}]" for p, c in zip("bcdefgh", "cdefghi", strict=True)),
         "x.yaml: aliases (*name) make more than 1,000,000 values of it; write it out"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert words in str(error.value)


def test_yaml_that_can() -> None:
    text = 'a: "\\ud83d\\ude00"\nb: ["\\ud83d\\ude00x", \'\\ud83d\']\nc: &c {d: 1}\ne: [*c, *c]\nf: !own x\n'
    assert plain(parse_yaml(text, "x.yaml")) == {
        "a": "😀",
        "b": ["😀x", r"\ud83d"],
        "c": {"d": 1},
        "e": [{"d": 1}, {"d": 1}],
        "f": "x",
    }


def test_half_a_character_in_a_change_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text('name: x\ntarget:\n  - prompt: "a \\ud83d"\n    answer: b\n', encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_change(path)
    assert str(error.value) == rf"{path}:3: \ud83d is half of a character; write the whole character"
    path.write_text('name: x\ntarget:\n  - prompt: "a \\ud83d\\ude00"\n    answer: b\n', encoding="utf-8")
    assert load_change(path).target[0].prompt == "a 😀"


@pytest.mark.parametrize("text", ["[" * 3000, "2001-99-99", '"\\ud83d"', "9" * 5000, "{a: "])
def test_values_of_set(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_value(text)


@pytest.mark.parametrize(
    ("text", "codec", "expected"),
    [
        ("一座很高的山，在臺灣的中部。", "big5", "Big5"),
        ("一座很高的山，在中国的中部。", "gb18030", "GB18030"),
        ("他说：“我们今天去公园吧！”", "gbk", "GB18030"),
        ("Ärger über Öl", "latin-1", ""),
        ("naïve café", "cp1252", ""),
        ("Привет, мир", "cp1251", ""),
    ],
)
def test_what_bytes_seem_to_be(text: str, codec: str, expected: str) -> None:
    data = text.encode(codec)
    with pytest.raises(UnicodeDecodeError):
        data.decode()
    found = guess(data, "rows.txt")
    assert found.cause == (f"not UTF-8; it looks like {expected}" if expected else "not UTF-8")
    if expected:
        assert f"iconv -f {expected.upper()} -t UTF-8 rows.txt" in found.mend


@pytest.mark.parametrize(("text", "key"), [("1: x", "1"), ("null: x", "None"), ("2020-01-01: x", "2020-01-01")])
def test_keys_that_are_no_words_are_unknown(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\ntarget: [{{prompt: a, answer: b}}]\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"unknown key '{key}'; known keys: name"):
        load_change(path)


@pytest.mark.timeout(20)
def test_deep_brackets_are_refused_at_once() -> None:
    """The parser takes a quarter of a minute for these, and longer the more there are."""
    with pytest.raises(ConfigError, match="nested more than"):
        parse_yaml("a: " + "[" * 20_000, "x.yaml")
