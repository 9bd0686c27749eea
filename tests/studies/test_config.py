from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.config.load import load_yaml
from posttrain.errors import ConfigError
from posttrain.studies.config import Every, Study, safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("pocket:chat", "pocket-chat"),
        ("Qwen/Qwen3-8B", "Qwen-Qwen3-8B"),
        ("/models/my model", "models-my-model"),
        ("full+self", "full+self"),
        ("a--b", "a-b"),
        ("../..", "x"),
        ("臺灣", "臺灣"),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text(max_size=40))
def test_a_safe_name_is_one_part_of_a_path(name: str) -> None:
    safe = safe_name(name)
    assert safe_name(safe) == safe
    assert safe not in ("", ".", "..")
    assert not set(safe) & set('/\\:*?"<>| \0\n')
    assert "--" not in safe


def test_the_study_of_the_design_reads(make_study: Callable[..., Path]) -> None:
    study = load_yaml(make_study(), Study)
    assert [method.label for method in study.methods] == ["prompt", "full", "full+self", "lora"]
    assert study.seeds == (0,)
    assert study.folder(Path("/somewhere")) == Path("runs/tiny")
    assert load_yaml(make_study(output="out"), Study).folder(Path("/somewhere")) == Path("/somewhere/out")
    assert load_yaml(make_study(seeds=3, checkpoints={"every": 5}), Study).checkpoints == Every(every=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": []}, "at least 1 item"),
        ({"methods": [{"kind": "prompt"}, {"kind": "prompt"}]}, "two methods are called prompt"),
        ({"methods": [{"kind": "promt"}]}, "unknown method 'promt'; did you mean 'prompt'?"),
        ({"methods": [{"kind": "train", "tunr": "full"}]}, "unknown key 'tunr'; did you mean 'tuner'?"),
        ({"methods": [{"kind": "train", "optimizer": {"learning_rte": 1}}]}, "did you mean 'learning_rate'?"),
        ({"methods": [{"kind": "train", "replay": {"kind": "self", "share": 1.0}}]}, "less than 1"),
        ({"methods": [{"kind": "train", "data": "{x}.jsonl"}]}, "only {change} may stand in braces"),
        ({"methods": [{"kind": "train", "replay": {"kind": "self", "prompts": "{x}.jsonl"}}]}, "only {change} may"),
        ({"methods": [{"kind": "train", "replay": {"kind": "self", "prompts": ["a", "{x}"]}}]}, "only {change} may"),
        ({"methods": [{"kind": "train", "replay": {"kind": "self", "prompts": []}}]}, "no file is named"),
        ({"methods": [{"kind": "train", "replay": {"kind": "self", "prompts": ["a", ""]}}]}, "no file is named"),
        ({"methods": [{"kind": "train", "replay": {"kind": "file", "data": "{x}.jsonl"}}]}, "only {change} may"),
        ({"methods": [{"kind": "prompt", "wording": "Remember!"}]}, "must hold {answer}"),
        ({"methods": [{"kind": "prompt", "wording": "{answr}"}]}, "only {prompt} and {answer}"),
        ({"models": ["a", "a"]}, "named twice: a"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"seeds": [2**40]}, "less than 4294967296"),
        ({"changes_as": {"sequence": True}}, "a whole number is expected, got true"),
        ({"study": "my study"}, "'my-study' would do"),
        ({"exams": ["chnge"]}, "exams.0"),
        ({"keep": "some"}, "'none', 'final' or 'all'"),
        ({"methods": [{"kind": "prompt", "inputs": {"other": "x"}}]}, "takes no input 'other'; known: none"),
        ({"methods": [{"kind": "blend", "inputs": {"from": "x"}}]}, "takes no input 'from'; known: toward"),
        ({"methods": [{"kind": "blend", "weight": "search"}]}, "weight: search chooses by exams with role: select"),
    ],
)
def test_what_is_wrong_is_said(make_study: Callable[..., Path], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(make_study(**fields), Study)
    assert message in str(caught.value)


def test_the_line_of_a_key_deep_in_a_method(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "study: s\nmodels: m\nchanges: c\nmethods:\n  - kind: train\n    optimizer:\n      learning_rte: 1\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"s\.yaml:7: unknown key 'learning_rte'; did you mean 'learning_rate'\?"):
        load_yaml(path, Study)
