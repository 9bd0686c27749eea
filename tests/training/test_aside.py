"""--restart in the folder of a finished run: its model is there until the new one is saved, and comes back on failure."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.errors import ConfigError, Interrupted
from posttrain.models.load import load_model
from posttrain.training.batches import StepLoader
from posttrain.training.checkpoints import ASIDE
from posttrain.training.lock import LOCK, only_one
from posttrain.training.run import train
from tests.training.tiny import PicoPath, Remembers, config, load, rows

SETTINGS: dict[str, Any] = {"tuner": "bitfit", "optimizer": {"max_steps": 2}, "save_every_steps": 1}


def go(pico_path: PicoPath, output: Path, resume: bool = True, progress: Remembers | None = None, **more: Any) -> Any:
    return train(
        config(**SETTINGS | more),
        loaded=load(pico_path, "gpt2"),
        rows=rows(4),
        output=output,
        resume=resume,
        progress=progress,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stop_in_step(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    """In the first step: this error, or Ctrl-C."""
    make = StepLoader.make

    def making(self: StepLoader, planned: Any) -> Any:
        if error is not None:
            raise error
        signal.raise_signal(signal.SIGINT)
        return make(self, planned)

    monkeypatch.setattr(StepLoader, "make", making)


@pytest.mark.parametrize("error", [MemoryError("no more"), KeyboardInterrupt()])
def test_a_restart_that_fails_before_it_saved_anything_leaves_the_folder_as_it_was(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    output, remembers = tmp_path / "run", Remembers()
    go(pico_path, output)
    before = contents(output)
    assert "model/model.safetensors" in before
    stop_in_step(monkeypatch, error)
    with pytest.raises(type(error)):
        go(pico_path, output, resume=False, progress=remembers, seed=5)
    assert contents(output) == before
    kept = f"what the earlier run has left is kept in {output / ASIDE} until the new model is saved"
    assert kept in remembers.said
    assert remembers.said[-1] == f"{output} is again as the earlier run has left it"


def test_ctrl_c_in_the_first_step_of_a_restart_keeps_the_model(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, remembers = tmp_path / "run", Remembers()
    go(pico_path, output)
    before = contents(output)
    with monkeypatch.context() as patch:
        stop_in_step(patch, None)
        with pytest.raises(Interrupted, match="run the same command without --restart to go on"):
            go(pico_path, output, resume=False, progress=remembers, seed=5)
    there = contents(output)
    model = {name: data for name, data in before.items() if name.startswith("model/")}
    assert {name: data for name, data in there.items() if name.startswith("model/")} == model
    aside = {f"{ASIDE}/{name}": data for name, data in before.items() if name not in model}
    assert {name: data for name, data in there.items() if name.startswith(ASIDE)} == aside
    assert f"{output / 'model'} is the earlier run's until then" in remembers.said
    load_model(str(output / "model"), device="cpu")
    # a second --restart keeps what stands aside; gone on with and finished, the new model takes the place
    with monkeypatch.context() as patch:
        stop_in_step(patch, None)
        with pytest.raises(Interrupted):
            go(pico_path, output, resume=False, seed=6)
    assert {name: data for name, data in contents(output).items() if name.startswith(ASIDE)} == aside
    assert go(pico_path, output, seed=6).steps == 2
    after = contents(output)
    assert not (output / ASIDE).exists()
    assert after["model/model.safetensors"] != before["model/model.safetensors"]
    assert after["card.md"] == after["model/README.md"]


def test_a_restart_that_ends_well_leaves_only_its_own(pico_path: PicoPath, tmp_path: Path) -> None:
    output = tmp_path / "run"
    go(pico_path, output)
    names = set(contents(output))
    go(pico_path, output, resume=False, seed=5)
    assert set(contents(output)) == names


def test_another_configuration_is_refused_before_anything_is_loaded_or_generated(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    go(pico_path, output)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work before the refusal")

    monkeypatch.setattr("posttrain.training.run.load_for_training", never)
    monkeypatch.setattr("posttrain.training.rows.make_replay", never)
    with pytest.raises(ConfigError, match=r"config\.seed: 0 -> 7"):
        train(config(**SETTINGS | {"seed": 7, "data": "rows.jsonl"}), output=output)
    replay = {"kind": "self", "n": 3}
    with pytest.raises(ConfigError, match=r"config\.replay\.n: not there -> 3"):
        train(config(**SETTINGS | {"replay": replay, "data": "rows.jsonl"}), output=output)


def test_other_rows_are_refused_before_replay_is_generated(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(**SETTINGS | {"replay": {"kind": "self", "n": 3}})
    given: dict[str, Any] = {"loaded": load(pico_path, "gpt2"), "output": tmp_path / "run"}
    train(chosen, rows=rows(4), replay_rows=rows(6, seed=9), **given)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("replay before the refusal")

    monkeypatch.setattr("posttrain.training.rows.make_replay", never)
    given["loaded"] = load(pico_path, "gpt2")
    with pytest.raises(ConfigError, match=r"rows: \w+ -> \w+") as caught:
        train(chosen, rows=rows(3), **given)
    assert "replay" not in str(caught.value)


def test_the_command_refuses_before_a_model_is_loaded(
    tmp_path: Path, pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that somebody works in, and one of other settings: nothing of `training.run` is called."""
    go(pico_path, tmp_path / "run")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the training was called")

    monkeypatch.setattr("posttrain.training.run.train", never)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    words = ["train", "--model", "pico", "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "run")]
    assert main([*words, "--tuner", "bitfit", "--set", "optimizer.max_steps=9"]) == 2
    assert "config.optimizer.max_steps: 2 -> 9" in capsys.readouterr().err
    with only_one(tmp_path / "run"):
        assert main(words) == 1
        assert "is working in this folder" in capsys.readouterr().err
    assert not (tmp_path / "run" / LOCK).exists()
