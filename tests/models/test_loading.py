"""The loading of weights is counted where it takes longer than a moment, and transformers shows no bar of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from transformers.utils import logging

from posttrain.cli.main import main
from posttrain.models.heads import load_head_model
from posttrain.models.load import load_model
from posttrain.models.meter import Doing, listening
from posttrain.models.save import save_model
from posttrain.models.tensors import tensors_in
from tests.pico_gguf import write_gguf
from tests.training.tiny import PicoPath

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is told, also on a machine on which loading takes no time."""
    monkeypatch.setattr("posttrain.models.meter.MOMENT_S", 0.0)
    monkeypatch.setattr("posttrain.models.meter.OFTEN_S", 0.0)
    monkeypatch.setattr("posttrain.cli.works.LINE_EVERY_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_every_tensor_is_counted(pico_path: PicoPath, capsys: Capture) -> None:
    count = len(tensors_in(pico_path("llama") / "model.safetensors"))
    told: list[Doing] = []
    with listening(told.append):
        load_model(str(pico_path("llama")), device="cpu")
    assert {(work.what, work.total, work.unit) for work in told} == {("loading weights", count, "tensors")}
    assert [work.done for work in told] == list(range(count + 1))
    assert [work.ends for work in told] == [False] * count + [True]
    assert logging.set_tqdm_hook(None) is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_once")
def test_those_of_a_gguf_file_while_they_are_dequantised(pico_path: PicoPath, tmp_path: Path, capsys: Capture) -> None:
    path = write_gguf(pico_path("llama"), tmp_path / "x.gguf", kind="Q8_0")
    told: list[Doing] = []
    with listening(told.append):
        load_model(str(path), device="cpu")
    assert {work.what for work in told} == {"loading weights"}
    assert sum(work.begins for work in told) == sum(work.ends for work in told) >= 2  # dequantised, then put into place
    assert not capsys.readouterr().err.count("\r")


@pytest.mark.usefixtures("at_once")
def test_those_below_a_new_head(pico_path: PicoPath) -> None:
    told: list[Doing] = []
    with listening(told.append):
        load_head_model(str(pico_path("llama")), "sequence", ["a", "b"], device="cpu", say=lambda _: None)
    assert told[-1].ends


def test_what_takes_no_time_is_not_told_of(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    told: list[Doing] = []
    with listening(told.append):
        load_model(str(pico_path("llama")), device="cpu")
    assert told == []


@pytest.mark.usefixtures("at_once", "loud_again")
def test_every_verb_that_loads_a_model_shows_it(pico_path: PicoPath, tmp_path: Path, capsys: Capture) -> None:
    model = str(pico_path("llama"))
    loaded = load_head_model(model, "sequence", ["a", "b"], device="cpu", say=lambda _: None)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "head")
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n{"text": "y z"}\n', encoding="utf-8")
    rows = str(tmp_path / "rows.jsonl")
    for words in (
        ["chat", model, "--once", "hi", "--max-new-tokens", "2"],
        ["predict", str(tmp_path / "head"), rows],
        ["model", "show", model],
        ["model", "verify", model],
        ["model", "export", model, str(tmp_path / "out")],
    ):
        assert main(words) == 0
        assert "loading weights: 0/" in capsys.readouterr().err, words
        quiet = [*words[:-1], words[-1] + "-quiet"] if "export" in words else words
        assert main([*quiet, "--quiet"]) == 0
        assert capsys.readouterr().err == ""
