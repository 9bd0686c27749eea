"""A disk that fills while a training writes: said, earlier checkpoints kept, the same command goes on from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from posttrain.errors import DiskError
from posttrain.training.run import train
from tests.training.tiny import PicoPath, config, load, rows, weights

SETTINGS: dict[str, Any] = {"objective": "sft", "optimizer": {"max_steps": 4}, "save_every_steps": 1}


def rust(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def torchs(*_: Any, **__: Any) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def tokenizers(*_: Any, **__: Any) -> None:
    raise Exception("No space left on device (os error 28)")  # as tokenizers does


def fills(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, full: Callable[..., None], after: int) -> None:
    """The function works `after` times, and then the disk is full."""
    own, calls = vars(owner)[name], []

    def one(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return own(*args, **named) if len(calls) <= after else full(*args, **named)

    monkeypatch.setattr(owner, name, one)


@pytest.mark.parametrize("what", ["weights", "optimiser", "tokenizer"])
def test_a_checkpoint_does_not_fit(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    import transformers.modeling_utils as saving
    from transformers import PreTrainedTokenizerFast

    settings = config(**SETTINGS, tuner="full")
    whole = train(settings, loaded=load(pico_path), rows=rows(6), output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        if what == "weights":
            fills(patch, saving, "safe_save_file", rust, 2)
        elif what == "optimiser":
            fills(patch, torch, "save", torchs, 6)  # optimiser, schedule and random states of two checkpoints
        else:
            fills(patch, PreTrainedTokenizerFast, "_save_pretrained", tokenizers, 2)
        with pytest.raises(DiskError, match=r"checkpoints.*step-3.*: cannot be written: .*same command goes on"):
            train(settings, loaded=load(pico_path), rows=rows(6), output=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    assert not (tmp_path / "run" / "result.json").exists()
    again = train(settings, loaded=load(pico_path), rows=rows(6), output=tmp_path / "run")
    expected = weights(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again.model).items())


def test_the_result_does_not_fit(pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(**SETTINGS | {"save_every_steps": 4}, tuner="fishmask")
    with monkeypatch.context() as patch:
        fills(patch, safetensors.torch, "save_file", rust, 1)
        with pytest.raises(DiskError, match=r"run.model: cannot be written: No space left on device"):
            train(settings, loaded=load(pico_path), rows=rows(6), output=tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-4"]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert train(settings, loaded=load(pico_path), rows=rows(6), output=tmp_path / "run").steps == 4
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
