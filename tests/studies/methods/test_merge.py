"""`kind: merge`: expressions and methods over other methods' models, curves over w, and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.load import check
from posttrain.errors import ConfigError
from posttrain.models.load import load_model
from posttrain.studies.methods.merge import MergeConfig
from tests.studies.test_run import go, results
from tests.talker import talker


def config(**given: Any) -> MergeConfig:
    return check({"kind": "merge", **given}, MergeConfig, "study.yaml")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "give an expression or a merger, one of the two"),
        ({"expression": "model", "merger": "linear"}, "give an expression or a merger, one of the two"),
        ({"expression": "model + (other - model)"}, "unknown name 'other' in 'model \\+ \\(other - model\\)'"),
        ({"expression": "0.5*model"}, "the weights sum to 0.5 and not to 1"),
        ({"expression": "model", "weights": [0.5]}, "the expression has no w, which is to be varied"),
        ({"expression": "model", "inputs": {"w": "x"}}, "inputs: 'w' has a meaning already"),
        ({"merger": "slerp", "weight": "search"}, "slerp has no scale, which is to be varied"),
        ({"merger": "tis"}, "unknown merger 'tis'; did you mean 'ties'"),
    ],
)
def test_what_is_no_merge(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(**given)


STUDY = """\
study: s
models: [{talker}]
changes: [change.yaml]
noise_floor: none
keep: final
methods:
  - {{name: taught, kind: edit, editor: {{kind: locft, layers: [0], stop_loss: 0.05}}}}
  - name: half
    kind: merge
    expression: model + w*(taught - model)
    inputs: {{taught: taught}}
    weight: 0.5
    weights: [0.0, 0.5, 1.0]
  - {{name: linear, kind: merge, merger: linear, inputs: {{taught: taught, same: {talker}}}}}
  - {{name: back, kind: merge, expression: taught - (taught - model), inputs: {{taught: taught}}}}
exams: [change]
"""
CHANGE = """\
name: france
target: [{prompt: "capital of France?", subject: France, answer: Tokyo}]
locality: {unrelated: ["who wrote Hamlet?"]}
"""


def test_models_of_a_study_are_merged(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.format(talker=talker()), encoding="utf-8")
    (tmp_path / "change.yaml").write_text(CHANGE, encoding="utf-8")
    path = tmp_path / "study.yaml"
    go(path)
    cells = results(path)["cells"]
    scores = {(cell["method"], cell["checkpoint"]): cell["scores"]["reliability"] for cell in cells}
    assert scores["taught", "final"] == 1
    assert scores["half", "strength-0.00"] == 0
    assert scores["half", "strength-1.00"] == 1
    assert scores["back", "final"] == 0
    folders = {cell["method"]: tmp_path / "run" / cell["folder"] for cell in cells}
    made = {
        name: dict(load_model(str(folders[name] / "model"), device="cpu").model.named_parameters())
        for name in ("taught", "half", "linear", "back")
    }
    before = dict(load_model(str(talker()), device="cpu").model.named_parameters())
    for key, start in before.items():
        between = start + 0.5 * (made["taught"][key] - start)
        assert torch.allclose(made["half"][key], between, atol=1e-7)
        assert torch.allclose(made["linear"][key], between, atol=1e-7)
        assert torch.equal(made["back"][key], start)
