"""Weights between before and after: equal to arithmetic by hand, whatever was tuned; both exams at each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from posttrain import registry
from posttrain.config.load import check
from posttrain.errors import ConfigError
from posttrain.models.added import added_to
from posttrain.models.load import load_model
from posttrain.models.merge_adapter import merge_peft
from posttrain.studies.candidates import Point
from posttrain.studies.merge_back import BESIDE, Between
from posttrain.studies.train_config import TrainMethodConfig
from tests.studies.conftest import TRAIN
from tests.studies.test_run import go, results

IDS = torch.tensor([[1, 4, 70, 80, 90, 2, 5, 33]])
TUNERS: tuple[dict[str, Any], ...] = (
    {"kind": "full"},
    {"kind": "bitfit", "norms": True},
    {"kind": "freeze", "top": 1},
    {"kind": "lora", "rank": 4},
    {"kind": "lora", "rank": 4, "dora": True},
    {"kind": "lora", "rank": 4, "init": "pissa"},
    {"kind": "lora", "rank": 4, "target_modules": ["q_proj", "lm_head"]},
    {"kind": "lora", "rank": 4, "target_modules": ["q_proj", "lm_head"], "dora": True},
    {"kind": "lora", "rank": 4, "target_modules": ["q_proj", "embed_tokens"]},
    {"kind": "lora", "rank": 4, "modules_to_save": ["lm_head"]},
    {"kind": "ia3"},
    {"kind": "fishmask", "share": 0.1},
    {"kind": "diff_pruning"},
)


def tuned_and_before(folder: Path, tuner: dict[str, Any]) -> tuple[Any, Any]:
    """A model whose trainable parameters have been moved a little, and the model before."""
    before = load_model(str(folder), device="cpu").model
    entry = registry.load("tuner", tuner["kind"])
    tuned = entry.function(copy.deepcopy(before), entry.config.model_validate(tuner)).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return tuned, before


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: "-".join(map(str, tuner.values())))
def test_weights_between_are_those_written_out_by_hand(pico_path: Callable[[str], Path], tuner: dict[str, Any]) -> None:
    tuned, before = tuned_and_before(pico_path("llama"), tuner)
    merged = copy.deepcopy(tuned)
    if isinstance(merged, PeftModel):
        merged = merge_peft(merged, "here")  # gives a tied matrix's two places their own, where only one was changed
    elif (part := added_to(merged)) is not None:
        part.merge(merged)
    start, end = before.state_dict(), merged.state_dict()
    state = {name: value.clone() for name, value in tuned.state_dict().items()}
    between = Between(tuned, before)
    for a in (0.3, 0.7):
        by_hand = copy.deepcopy(before if added_to(tuned) is not None else merged)
        by_hand.load_state_dict({name: (1 - a) * start[name] + a * end[name] for name in start})
        with between.at(a) as model:
            assert (logits(model) - logits(by_hand)).abs().max() < 1e-6
    assert all(torch.equal(value, state[name]) for name, value in tuned.state_dict().items())
    assert (logits(tuned) - logits(before)).abs().max() > 1e-3


def test_ends_are_the_two_models(pico_path: Callable[[str], Path]) -> None:
    tuned, before = tuned_and_before(pico_path("qwen3"), {"kind": "lora", "rank": 2})
    between = Between(tuned, before)
    with between.at(0.0) as model:
        assert torch.equal(logits(model), logits(before))
    with between.at(1.0) as model:
        assert torch.equal(logits(model), logits(tuned))


@pytest.mark.parametrize("kind", [kind for kind in BESIDE if kind in registry.kinds("tuner")])
def test_what_stands_beside_the_weights_has_nothing_between(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"merge_back: {kind} puts something beside the weights"):
        check({"kind": "train", "tuner": kind, "merge_back": [0.5]}, TrainMethodConfig, "test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merge_back": [0.0]}, "0"),
        ({"merge_back": [0.5, 0.502]}, "two of them are blend-0.50"),
        ({"merge_back": [0.5], "stages": "separate"}, "there is no one trained model"),
    ],
)
def test_what_cannot_be_is_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check({"kind": "train", **fields}, TrainMethodConfig, "test")


def test_a_study_examines_the_models_between(make_study: Callable[..., Path]) -> None:
    full = {"name": "full", **TRAIN, "merge_back": [0.25, 0.75]}
    lora = {**full, "name": "lora", "tuner": {"kind": "lora", "rank": 2}}
    path = make_study(changes="changes/france.yaml", methods=[full, lora])
    outcome, _ = go(path)
    assert outcome.failed == []
    cells = results(path)["cells"]
    assert [c["checkpoint"] for c in cells] == ["final", "blend-0.25", "blend-0.75"] * 2
    full_cells = {c["checkpoint"]: c for c in cells if c["method"] == "full"}
    drift = [full_cells[name]["scores"]["drift.unrelated_kl"] for name in ("blend-0.25", "blend-0.75", "final")]
    assert drift == sorted(drift)
    assert drift[0] < drift[2] / 2
    assert full_cells["final"]["scores"]["reliability"] == 1.0
    assert full_cells["blend-0.25"]["step"] is None
    plain = make_study(changes="changes/france.yaml", methods=[{"name": "full", **TRAIN}])
    go(plain, restart=True)
    (alone,) = results(plain)["cells"]
    assert alone["scores"] == full_cells["final"]["scores"]  # the trained model is as it was
    assert Point("blend", 0.3).name == "blend-0.30"
