"""A study over an adapter's folder: what is examined, trained and kept is the adapter merged into its base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain import registry
from posttrain.config.load import check
from posttrain.errors import PosttrainError
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.save import save_model
from posttrain.studies.bench import Bench
from posttrain.studies.examine import Examiner
from posttrain.training.config import TrainConfig
from tests.studies.conftest import TRAIN
from tests.studies.test_run import go, results
from tests.talker import talker

STEPS = {"learning_rate": 3e-3, "max_steps": 3}


def adapter(folder: Path, seed: int = 0, **tuner: Any) -> Path:
    """An adapter of the talker that says something else: its weights are moved at random."""
    loaded = load_model(str(talker()), device="cpu")
    part = check({"model": "m", "objective": "sft", "data": "d.jsonl", "tuner": tuner}, TrainConfig, "test").tuner
    tuned = registry.load("tuner", tuner["kind"]).function(loaded.model, part)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=draw))
    save_model(tuned.eval(), loaded.tokenizer, folder)
    return folder


@torch.no_grad()
def logits(loaded: LoadedModel) -> Tensor:
    ids = torch.tensor([loaded.tokenizer("who wrote Hamlet?").input_ids])
    found: Tensor = loaded.model(input_ids=ids).logits
    return found


TUNERS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 2},
    "pissa": {"kind": "lora", "rank": 2, "init": "pissa"},
    "ia3": {"kind": "ia3"},
    "prompt_tuning": {"kind": "prompt_tuning", "tokens": 2},
}


@pytest.mark.parametrize(
    "first",
    [
        {"kind": "lora", "rank": 4},
        {"kind": "lora", "rank": 4, "target_modules": ["q_proj", "lm_head"]},  # the talker's head is tied
        {"kind": "ia3"},
    ],
    ids=["lora", "tied head", "ia3"],
)
def test_what_a_study_over_an_adapter_keeps_is_what_it_examined(
    make_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, Any]
) -> None:
    """The kept folders load, and give the outputs of the models that took the exams."""
    start = adapter(tmp_path / "start", **first)
    examined: list[Tensor] = []
    take = Examiner.take

    def heard(self: Examiner, changes: Any, respondent: Any, *rest: Any, **options: Any) -> Any:
        examined.append(logits(LoadedModel(respondent.model, respondent.tokenizer, "heard")))
        return take(self, changes, respondent, *rest, **options)

    monkeypatch.setattr(Examiner, "take", heard)
    methods = [{**TRAIN, "name": name, "tuner": tuner, "optimizer": STEPS} for name, tuner in TUNERS.items()]
    path = make_study(models=["start"], changes="changes/france.yaml", methods=methods, keep="final")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*PEFT.*|.*peft_config.*|.*adapter.*|.*base model.*")
        outcome, listener = go(path)
    assert (outcome.ran, outcome.failed) == (len(TUNERS), [])
    merged = f"start: an adapter; the study's model is it merged into its base '{talker().resolve()}'"
    assert listener.lines.count(merged) == 1
    untouched = logits(load_model(str(start)))
    bench = Bench("start", base=tmp_path, forbidden=frozenset(), say=lambda text: None)
    for cell, expected in zip(results(path)["cells"], examined, strict=True):
        kept = path.parent / "run" / cell["weights"]
        torch.testing.assert_close(logits(load_model(str(kept))), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits(bench.load(kept)), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(expected[:, -untouched.shape[1] :], untouched, atol=1e-3)  # training has moved it
        if cell["method"] != "full":
            noted = json.loads((kept / "adapter_config.json").read_text(encoding="utf-8"))
            assert noted["base_model_name_or_path"] == str(start.resolve())
            # merged in other arithmetic, some numbers of the base round otherwise: it is the same base
            load_model(str(kept), dtype="bfloat16", device="cpu")
    adapter(start, **first, seed=1)
    with pytest.raises(PosttrainError, match="was trained on another base than"):
        load_model(str(path.parent / "run" / results(path)["cells"][1]["weights"]))


def test_the_untouched_model_is_the_adapters_and_its_cells_begin_there(tmp_path: Path) -> None:
    start = adapter(tmp_path / "start", kind="lora", rank=4)
    told: list[str] = []
    bench = Bench("start", base=tmp_path, forbidden=frozenset(), say=told.append)
    expected = logits(load_model(str(start)))
    assert not torch.allclose(expected, logits(load_model(str(talker()))), atol=1e-2)
    for loaded in (bench.loaded, bench.working(), bench.lent()):
        torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
    bench.check_untouched()


def test_an_adapter_that_is_no_change_of_weights_is_examined_and_not_trained(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    """Virtual tokens cannot be merged: a method that trains fails and says why, the others go on."""
    start = adapter(tmp_path / "start", kind="prompt_tuning", tokens=2)
    bench = Bench("start", base=tmp_path, forbidden=frozenset(), say=lambda text: None)
    torch.testing.assert_close(logits(bench.loaded), logits(load_model(str(start))))
    methods = [{"kind": "prompt"}, {**TRAIN, "name": "full"}, {**TRAIN, "name": "lora", "tuner": "lora"}]
    path = make_study(models=["start"], changes="changes/france.yaml", methods=methods, keep="final")
    outcome, listener = go(path)
    cause = "PROMPT_TUNING cannot be merged into its base: it is no change of weights"
    assert listener.lines.count(f"start: {cause}; the study examines it as it is and cannot train it") == 1
    assert {c["method"]: c["status"] for c in results(path)["cells"]} == {
        "prompt": "done",
        "full": "failed",
        "lora": "failed",
    }
    errors = [str(c["error"]) for c in results(path)["cells"] if c["status"] == "failed"]
    assert len(outcome.failed) == 2
    assert all(cause in error and "train its base" in error for error in errors)
