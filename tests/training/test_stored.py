"""A trained model is saved in the precision of its base, and is in memory what was saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from posttrain.models.load import load_model
from posttrain.models.save import save_model
from posttrain.models.tensors import stored_dtype, tensors_in
from posttrain.training.precision import unused_dtype
from posttrain.training.run import train
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights
from tests.tuners.matrix import KINDS, tried

STEPS = {"objective": "sft", "optimizer": {"learning_rate": 1e-3, "max_steps": 3}}


@pytest.fixture
def stored_as(pico_path: PicoPath, tmp_path: Path) -> Callable[[str, str], Path]:
    """The family's model with its numbers in another precision."""

    def make(family: str, dtype: str) -> Path:
        loaded = load(pico_path, family)
        folder = tmp_path / f"{family}-{dtype}"
        save_model(loaded.model, loaded.tokenizer, folder, dtype=getattr(torch, dtype))
        return folder

    return make


def dtypes(folder: Path) -> set[str]:
    return {one.dtype for path in folder.glob("*.safetensors") for one in tensors_in(path).values()}


@pytest.mark.parametrize(("family", "dtype", "name"), [("llama", "bfloat16", "BF16"), ("gpt2", "float16", "F16")])
def test_saved_as_the_base_is_and_the_model_is_what_was_saved(
    stored_as: Callable[[str, str], Path], tmp_path: Path, family: str, dtype: str, name: str
) -> None:
    base, output, remembers = stored_as(family, dtype), tmp_path / "run", Remembers()
    assert stored_dtype(str(base)) == dtype
    settings = config(**STEPS, tuner="full", model=str(base), save_every_steps=3)
    trained = train(settings, rows=rows(4), output=output, progress=remembers)
    assert dtypes(output / "model") == {name}
    assert json.loads((output / "model/config.json").read_text())["dtype"] == dtype
    assert dtypes(output / "checkpoints/step-3") == {"F32"}  # training goes on from what it had
    [line] = [line for line in remembers.said if "save_dtype" in line]
    assert f"saved in {dtype}, as its base is" in line
    again = weights(load_model(str(output / "model"), device="cpu").model)
    memory = weights(trained.model)
    before = weights(load_model(str(base), device="cpu").model)
    exact = weights(load_model(str(output / "checkpoints/step-3"), device="cpu").model)
    assert memory.keys() == again.keys() == before.keys()
    for key, value in memory.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, again[key])
        assert torch.equal(value, exact[key].to(getattr(torch, dtype)).float())
    assert any(not torch.equal(memory[key], before[key]) for key in memory)
    resumed = train(settings, rows=rows(4), output=output, progress=remembers)  # read back
    assert all(torch.equal(value, memory[key]) for key, value in weights(resumed.model).items())


def test_asked_otherwise(stored_as: Callable[[str, str], Path], pico_path: PicoPath, tmp_path: Path) -> None:
    base = stored_as("llama", "bfloat16")
    plain = train(
        config(**STEPS, tuner="full", model=str(base), save_dtype="float32"), rows=rows(4), output=tmp_path / "a"
    )
    assert dtypes(tmp_path / "a/model") == {"F32"}
    saved = weights(load_model(str(tmp_path / "a/model"), device="cpu").model)
    assert all(torch.equal(value, saved[key]) for key, value in weights(plain.model).items())
    assert any(not torch.equal(v, v.bfloat16().float()) for v in saved.values())
    float32 = str(pico_path("llama"))
    train(config(**STEPS, tuner="full", model=float32), rows=rows(4), output=tmp_path / "b")
    assert dtypes(tmp_path / "b/model") == {"F32"}
    train(config(**STEPS, tuner="full", model=float32, save_dtype="bfloat16"), rows=rows(4), output=tmp_path / "c")
    assert dtypes(tmp_path / "c/model") == {"BF16"}


def test_adapters_stay_as_they_are_trained(stored_as: Callable[[str, str], Path], tmp_path: Path) -> None:
    base = stored_as("llama", "bfloat16")
    for tuner in ("lora", "fishmask"):
        train(config(**STEPS, tuner=tuner, model=str(base)), rows=rows(4), output=tmp_path / tuner)
        assert "BF16" not in dtypes(tmp_path / tuner / "model")
        assert stored_dtype(str(tmp_path / tuner / "model")) == "bfloat16"  # its base's
    merged = train(
        config(**STEPS, tuner="full", model=str(tmp_path / "lora/model")), rows=rows(4), output=tmp_path / "merged"
    )
    assert dtypes(tmp_path / "merged/model") == {"BF16"}
    assert all(torch.equal(v, v.bfloat16().float()) for v in weights(merged.model).values())


def test_a_number_too_large_is_not_made_infinite(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded, remembers = load(pico_path), Remembers()
    with torch.no_grad():
        loaded.model.model.norm.weight[0] = 1e6
    settings = config(**STEPS, tuner={"kind": "freeze", "top": 1}, save_dtype="float16")
    train(settings, loaded=loaded, rows=rows(4), output=tmp_path, progress=remembers)
    assert any("numbers that float16 cannot hold: it is saved as it is" in line for line in remembers.said)
    assert dtypes(tmp_path / "model") == {"F32"}


def test_a_tied_matrix_is_written_once(stored_as: Callable[[str, str], Path]) -> None:
    with safe_open(str(stored_as("llama", "bfloat16") / "model.safetensors"), "pt") as file:
        names: Any = file.keys()
        assert "lm_head.weight" not in names


def test_runs_of_before_there_was_a_choice_go_on() -> None:
    from posttrain.training.checkpoints import settings_of

    assert "save_dtype" not in settings_of(config(objective="sft"))
    assert settings_of(config(objective="sft", save_dtype="float32"))["save_dtype"] == "float32"


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_adapter_is_not_saved_in_is_said(pico_path: PicoPath, tmp_path: Path, kind: str) -> None:
    """Of every tuner: either it is saved as asked, or that is said before training; a dry run says it too."""
    how, remembers = tried(kind), Remembers()
    chosen = config(**STEPS, tuner={"kind": kind, **how.settings}, save_dtype="bfloat16")
    train(chosen, loaded=load(pico_path), rows=rows(4), output=tmp_path, progress=remembers)
    told = f"save_dtype: bfloat16 is for whole models: what {kind} leaves is an adapter, saved in float32"
    assert (told in remembers.said) == how.adapter
    assert ("BF16" in dtypes(tmp_path / "model")) != how.adapter
    assert unused_dtype("float32", kind) == unused_dtype("auto", kind) == ""
