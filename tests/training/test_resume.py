"""Stopping and going on: bit for bit the same, after a signal, a kill in training, and a kill in a checkpoint."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.errors import ConfigError, Interrupted, PosttrainError
from posttrain.models.load import load_model
from posttrain.training import trainer
from posttrain.training.batches import StepLoader
from posttrain.training.checkpoints import checkpoints_in
from posttrain.training.config import TrainConfig
from posttrain.training.run import TrainResult, train
from posttrain.training.steps import StepRows
from tests.processes import Started
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights

OLD = rows(30, seed=9, name="old.jsonl")
FAMILY = "gpt2"  # the one whose configuration has dropout: the random state matters


def settings(**more: Any) -> TrainConfig:
    return config(
        **{
            "optimizer": {"max_steps": 6, "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2},
            "batch": {"tokens": 60, "accumulate": 2},
            "replay": {"kind": "file", "data": "unused.jsonl", "share": 0.6},
            "evaluate_every_steps": 2,
            "seed": 3,
            **more,
        }
    )


def run(pico_path: PicoPath, output: Path, chosen: TrainConfig | None = None, **more: Any) -> TrainResult:
    return train(
        chosen or settings(),
        loaded=load(pico_path, FAMILY),
        rows=rows(17),
        validation_rows=rows(4, seed=2),
        replay_rows=OLD,
        output=output,
        **more,
    )


def signal_in_step(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """While the `step`-th step of a session is being read, the signal comes."""
    make, seen = StepLoader.make, []

    def making(self: StepLoader, planned: StepRows) -> Any:
        seen.append(planned)
        if len(seen) == step:
            signal.raise_signal(number)
        return make(self, planned)

    monkeypatch.setattr(StepLoader, "make", making)


def assert_same_run(one: TrainResult, other: TrainResult) -> None:
    first, second = weights(one.model), weights(other.model)
    assert all(torch.equal(first[k], second[k]) for k in first)
    timings = {"wall_s", "tokens_per_s", "peak_gib"}
    assert [{k: v for k, v in e.items() if k not in timings} for e in one.history] == [
        {k: v for k, v in e.items() if k not in timings} for e in other.history
    ]
    assert (one.tokens, one.loss_nats, one.best_step) == (other.tokens, other.loss_nats, other.best_step)


@pytest.fixture(scope="module")
def whole(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Six steps without a stop."""
    return run(pico_path, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_three_and_three_steps_are_six(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: TrainResult, number: int
) -> None:
    output, before = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3, number)
        with pytest.raises(Interrupted, match=r"stopped after step 3 of 6.*step-3") as caught:
            run(pico_path, output)
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) == before
    assert 3 in checkpoints_in(output / "checkpoints")
    assert not (output / "model").exists()

    loaded, torch_load = [], torch.load

    def careful(*arguments: Any, **options: Any) -> Any:
        loaded.append((arguments[0], options.get("weights_only")))
        return torch_load(*arguments, **options)

    monkeypatch.setattr(torch, "load", careful)
    remembers = Remembers()
    again = run(pico_path, output, progress=remembers)
    assert {Path(name).name for name, _ in loaded} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert all(weights_only is True for _, weights_only in loaded)
    assert "going on after step 3" in remembers.said
    assert [e["step"] for e in remembers.entries if "loss_nats" in e] == [4, 5, 6]
    assert_same_run(whole, again)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == again.history


MUON = {"kind": "muon", "max_steps": 6, "schedule": "linear"}


@pytest.mark.parametrize("more", [{"tuner": {"kind": "lora", "rank": 4, "dropout": 0.1}}, {"optimizer": MUON}])
def test_lora_and_muon_resume_bit_for_bit(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    chosen = settings(**more)
    straight = run(pico_path, tmp_path / "straight", chosen)
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3)
        with pytest.raises(Interrupted):
            run(pico_path, tmp_path / "run", chosen)
    assert_same_run(straight, run(pico_path, tmp_path / "run", chosen))


def test_interrupted_without_a_folder_says_so(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_in_step(monkeypatch, 1)
    with pytest.raises(Interrupted, match=r"stopped after step 1 of 6$"):
        train(settings(), loaded=load(pico_path), rows=rows(17), replay_rows=OLD)


def test_second_ctrl_c_stops_at_once(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    make = StepLoader.make

    def making(self: StepLoader, planned: StepRows) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return make(self, planned)

    monkeypatch.setattr(StepLoader, "make", making)
    with pytest.raises(KeyboardInterrupt):
        train(settings(), loaded=load(pico_path), rows=rows(17), replay_rows=OLD)


def test_another_configuration_is_not_resumed(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_step(patch, 2)
        with pytest.raises(Interrupted):
            run(pico_path, output)
    other = settings(optimizer={"max_steps": 6, "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 2})
    with pytest.raises(ConfigError) as caught:
        run(pico_path, output, other)
    assert "config.optimizer.learning_rate: 0.001 -> 0.002" in str(caught.value)
    assert "--restart" in str(caught.value)
    assert "schedule" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"rows: \w+ -> \w+"):
        train(
            settings(), loaded=load(pico_path, FAMILY), rows=rows(16), validation_rows=rows(4, seed=2),
            replay_rows=OLD, output=output,
        )  # fmt: skip
    # what has no effect on the weights may change
    remembers = Remembers()
    run(pico_path, output, settings(save_every_steps=1, keep_checkpoints=None), progress=remembers)
    assert "going on after step 2" in remembers.said
    restarted = run(pico_path, output, other, resume=False)
    assert [e["step"] for e in restarted.history if "loss_nats" in e] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_not_repeated(pico_path: PicoPath, tmp_path: Path) -> None:
    first = run(pico_path, tmp_path / "run")
    remembers = Remembers()
    again = run(pico_path, tmp_path / "run", progress=remembers)
    assert any("is finished (6 steps)" in line for line in remembers.said)
    assert remembers.entries == []
    assert again.history == first.history
    assert (again.steps, again.loss_nats, again.moved) == (first.steps, first.loss_nats, first.moved)
    one, other = weights(first.model), weights(again.model)
    assert all(torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(ConfigError, match=r"config\.seed: 3 -> 4"):
        run(pico_path, tmp_path / "run", settings(seed=4))


def test_a_folder_of_something_else_is_left_alone(pico_path: PicoPath, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    for resume in (True, False):
        with pytest.raises(PosttrainError, match="not the folder of a run"):
            run(pico_path, tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_is_written_without_an_output(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(pico_path, FAMILY)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wax+"))
        if watching and (writes or event in ("os.mkdir", "os.rename")):
            opened.append(str(arguments[0]))

    watching = True
    sys.addaudithook(watch)  # stays for the session, silent once `watching` is False
    train(settings(save_every_steps=1), loaded=loaded, rows=rows(17), validation_rows=rows(4), replay_rows=OLD)
    watching = False
    opened = [path for path in opened if path != "/proc/self/clear_refs"]  # no file: sets the peak memory back
    assert opened == []
    assert list(Path().iterdir()) == []


def train_and_die(where: str, model: str, output: Path) -> None:
    """Killed after step 4, while a line of metrics ("training") or a file of the checkpoint is being written."""
    save, log = torch.save, trainer.PostTrainer.log

    def killing_save(value: Any, path: Any, *rest: Any, **options: Any) -> None:
        if where == "checkpoint" and "step-4" in str(path) and str(path).endswith("scheduler.pt"):
            Path(path).write_bytes(b"half a fi")
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, path, *rest, **options)

    def killing_log(self: Any, logs: Any, start_time: Any = None) -> None:
        if where == "training" and self.state.global_step == 4:
            self.metrics.path.open("a").write('{"step": 4, "loss_na')  # a line cut short
            os.kill(os.getpid(), signal.SIGKILL)
        log(self, logs, start_time)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", killing_save)
        patch.setattr(trainer.PostTrainer, "log", killing_log)
        train(
            settings(save_every_steps=2),
            # copied as in `run`: weights that are mapped from a file lie otherwise in memory, and on an AMD processor MKL's
            # sums depend on that in the last bit
            loaded=copy.deepcopy(load_model(model, device="cpu")),
            rows=rows(17),
            validation_rows=rows(4, seed=2),
            replay_rows=OLD,
            output=output,
        )


@pytest.mark.parametrize("where", ["training", "checkpoint"])
def test_kill_9_then_the_same_command(pico_path: PicoPath, tmp_path: Path, whole: TrainResult, where: str) -> None:
    output = tmp_path / "run"
    threads = torch.get_num_threads()  # sums depend on it in the last bit
    process = Started(train_and_die, where, str(pico_path(FAMILY)), output, folder=tmp_path, threads=threads)
    code, _, err = process.finish()
    assert code == -signal.SIGKILL, err
    left = {p.name for p in (output / "checkpoints").iterdir()}
    assert left == ({"step-2"} if where == "training" else {"step-2", ".tmp-step-4"})
    assert load_file(output / "checkpoints" / "step-2" / "model.safetensors")
    remembers = Remembers()
    again = run(pico_path, output, settings(save_every_steps=2), progress=remembers)
    assert "going on after step 2" in remembers.said
    assert any(".tmp-step-4" in line for line in remembers.said) == (where == "checkpoint")
    assert not list((output / "checkpoints").glob(".tmp-*"))
    assert_same_run(whole, again)
    assert load_model(str(output / "model"), device="cpu").model is not None
