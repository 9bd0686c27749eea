from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.yaml_text import parse_yaml, plain
from posttrain.errors import ConfigError
from tests.config.test_load import problems

COLON = "the full-width colon ：; write : and a space"
BRACKETS = "full-width brackets; write [ ] or { }"
COMMA = "the full-width comma ，; write , and a space"
QUOTES = 'full-width quotation marks; write "'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("study：tiny\nmodels: x\n", [f"1: {COLON}"]),
        ("study: tiny\nmodels：x\n", [f"2: {COLON}"]),
        ("a: 1\nm:\n  - kind: train\n    tuner：full\n    x: 2\n", [f"4: {COLON}"]),
        ("name: a\n\n# said\ntarget：\n\n  - {prompt: x}\nlocality: {}\n", [f"4: {COLON}"]),
        ("study：tiny\nmodels: x\nseeds：0\nkeep: none\n", [f"1: {COLON}", f"3: {COLON}"]),
        ("a: 甲：乙\nm: ｛a: 1｝\nb: 2\n", [f"2: {BRACKETS}"]),
        ("m: [a, b］\nx: 1\n", [f"1: {BRACKETS}"]),
        ("m: {a: 1，b: 2}\n", [f"1: {COMMA}"]),
        ("m: “a: b”\nx: 1\n", [f"1: {QUOTES}"]),
        ("x: 1\nm：　｛a: 1，b: 2｝\n", [f"2: {COLON}", f"2: {BRACKETS}", f"2: {COMMA}"]),
    ],
)
def test_the_line_of_the_sign_is_told_not_the_next(text: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x.yaml")
    assert [str(p) for p in caught.value.problems] == [
        f"x.yaml:{line.partition(': ')[0]}: not valid YAML: {line.partition(': ')[2]}" for line in told
    ]


def test_another_fault_is_not_blamed_on_them() -> None:
    """Full-width signs in texts are right where they are."""
    with pytest.raises(ConfigError, match=r"^x.yaml:3: not valid YAML: mapping values are not allowed here$"):
        parse_yaml('a: 問題：答案\nb: "（甲，乙）"\nc: d: e\n', "x.yaml")
    assert plain(parse_yaml("a: 問題：答案，“好”\n", "x.yaml")) == {"a": "問題：答案，“好”"}


def test_where_the_yaml_is_valid_the_refused_value_is_told(tmp_path: Path) -> None:
    assert problems(tmp_path, "name：x\n") == [
        f"x.yaml:1: the full-width colon ： in 'name：x'; {COLON.partition('; ')[2]}"
    ]
    assert problems(tmp_path, "name: x\nparts:\n- {max_steps：1}\n") == [
        "x.yaml:3: the full-width colon ： in 'max_steps：1'; write : and a space"
    ]
    assert problems(tmp_path, "name: x\nparts:\n- max_steps：1\n") == [
        "x.yaml:3: parts.0: the full-width colon ： in 'max_steps：1'; write : and a space"
    ]
    assert problems(tmp_path, "name: x\nparts: ［］\n") == [
        "x.yaml:2: parts: full-width brackets in '［］'; write [ ] or { }"
    ]
    assert problems(tmp_path, "name: x\noptimizer: {max_steps: “3”}\n") == [
        "x.yaml:2: optimizer.max_steps: full-width quotation marks in '“3”'; write \""
    ]
    assert problems(tmp_path, "name: x\ntuner: kind：lora\n") == [
        "x.yaml:2: tuner: the full-width colon ： in 'kind：lora'; write : and a space"
    ]
