"""Ctrl-C and SIGTERM in every verb that works long: what is done is kept, and a line says how to go on."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.data.pocket import changes as pocket_changes
from posttrain.exams.running import run_task
from tests.exams.tasks.told import write_rows
from tests.processes import Started
from tests.studies.conftest import TRAIN, write_study

Capture = pytest.CaptureFixture[str]
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
AGAIN = "run the same command to go on"


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal; what a shell starts in the background is deaf to it. The handlers come back."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    terms = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is terms
    signal.signal(signal.SIGINT, former)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path)


def comes_at(monkeypatch: pytest.MonkeyPatch, where: str, number: int, *, call: int = 1) -> None:
    """The signal arrives when the function is called for the `call`th time, after it has done its work."""
    module, _, name = where.rpartition(".")
    owner: Any
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        module, _, kind = module.rpartition(".")
        owner = vars(importlib.import_module(module))[kind]
    whole, calls = vars(owner)[name], []

    def stopped(*words: Any, **named: Any) -> Any:
        found = whole(*words, **named)
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return found

    monkeypatch.setattr(owner, name, stopped)


STAGES = {
    "the exams are read": ("posttrain.studies.exams.prepare_exams", 1, 0),
    "the model is loaded": ("posttrain.studies.bench.load_model", 1, 0),
    "replay is generated": ("posttrain.retention.replay.self.answered_once", 1, 2),
    "an exam is taken": ("posttrain.exams.sample_log.append_row", 1, 0),
    "a cell has ended": ("posttrain.cli.run.Watcher.ends", 2, 2),
}
"""When -> the function, which call of it, and how many of six cells are done then."""


@pytest.mark.parametrize(
    ("when", "number", "code"),
    [
        pytest.param(when, *both, marks=[pytest.mark.slow] if (i + j) % 2 else [])
        for i, when in enumerate(STAGES)
        for j, both in enumerate(SIGNALS)
    ],
)
def test_a_study(
    study: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, when: str, number: int, code: int
) -> None:
    """Wherever it comes, what is done is kept, and the same command goes on."""
    where, call, done = STAGES[when]
    words = ["run", str(study), *("--only", "prompt", "--only", "full", "--only", "full+self")]
    with monkeypatch.context() as patch:
        comes_at(patch, where, number, call=call)
        assert main(words) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    said = err.splitlines()
    if when == "the exams are read":
        assert said[-1] == f"stopped; {AGAIN}"
    else:
        assert f"stopped; {done} of 6 cells are done; {AGAIN}" in said
        assert said[-1] == "so far: posttrain report runs/tiny"
        assert len(json.loads(Path("runs/tiny/results.json").read_text(encoding="utf-8"))["cells"]) == done
    assert not Path("runs/tiny/.lock").exists()
    assert main(words) == 0
    kept = "cell was done before and is" if done == 1 else "cells were done before and are"
    assert (f"{done} {kept} kept" in capsys.readouterr().err) == bool(done)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_study_whose_report_is_written(
    study: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    words = ["run", str(study), "--only", "prompt"]
    with monkeypatch.context() as patch:
        comes_at(patch, "posttrain.reports.html.write_report", number)
        assert main(words) == code
    assert capsys.readouterr().err.splitlines()[-2:] == [f"stopped; {AGAIN}", "so far: posttrain report runs/tiny"]
    assert main([*words, "--restart"]) == 0
    with monkeypatch.context() as patch:  # the same command would begin anew
        comes_at(patch, "posttrain.cli.run.Watcher.ends", number)
        assert main([*words, "--restart"]) == code
    said = "stopped; 1 of 2 cells are done; run the same command without --restart to go on"
    assert said in capsys.readouterr().err


def test_in_a_step_of_a_cell_sigterm_saves_as_ctrl_c_does(study: Path) -> None:
    """Also of a process of its own: nothing but our lines, and not the system's exit code of a killed one."""
    long = {"name": "long", **TRAIN, "optimizer": {"learning_rate": 1e-5, "max_steps": 100000}}
    study = write_study(study.parent, methods=[long])
    process = Started(main, ["run", str(study), "--set", "keep=final"], folder=study.parent)
    process.wait_until(lambda: bool(list(Path().glob("runs/tiny/cells/*/training/metrics.jsonl"))))
    process.send(signal.SIGTERM)
    code, out, err = process.finish()
    assert (code, out) == (143, ""), err
    assert "Traceback" not in err
    assert err.splitlines()[-2:] == [f"stopped; 0 of 2 cells are done; {AGAIN}", "so far: posttrain report runs/tiny"]


QUESTIONS = [{"question": f"Question {i}?", "choices": ["w", "x", "y", "z"], "answer": "A"} for i in range(6)]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("where", ["posttrain.inference.opening.open_respondent", "posttrain.exams.running._calls"])
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_an_exam(
    tmp_path: Path,
    pico_path: Callable[[str], Path],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
    where: str,
    number: int,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(run_task.__kwdefaults__ or {}, "chunk", 8)  # two questions
    write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    words = ["exam", str(pico_path("llama")), "--exam", "mmlu=questions.jsonl", *(["-o", "out"] if kept else [])]
    with monkeypatch.context() as patch:
        comes_at(patch, where, number, call=1 if where.endswith("respondent") else 3)
        assert main([*words, *(["--restart"] if where.endswith("respondent") else [])]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    without = " without --restart" if where.endswith("respondent") else ""
    again = (
        f"the same command{without} goes on where it stopped" if kept else "nothing was kept: give --output to go on"
    )
    assert err.splitlines()[-1] == f"stopped; {again}"
    if kept and where.endswith("_calls"):
        assert len(Path("out/exams/mmlu.jsonl").read_text(encoding="utf-8").splitlines()) == 4
        assert main(words) == 0
        assert len(Path("out/exams/mmlu.jsonl").read_text(encoding="utf-8").splitlines()) == 6


@pytest.mark.parametrize("where", ["load_any", "head_of_model"])
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_an_export_leaves_nothing(
    tmp_path: Path,
    pico_path: Callable[[str], Path],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    number: int,
    code: int,
) -> None:
    """While the model is loaded, and when what was written is loaded again."""
    with monkeypatch.context() as patch:
        comes_at(patch, f"posttrain.models.export.{where}", number)
        assert main(["model", "export", str(pico_path("llama")), str(tmp_path / "out")]) == code
    assert capsys.readouterr().err.splitlines()[-1] == "stopped: nothing was written; run the same command again"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_made_data(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        comes_at(patch, "posttrain.models.meter.Meter.more", number, call=7)  # five are made, two written
        assert main(["data", "make", "changes", "--n", "5"]) == code
    said = "stopped: 2 of 5 change files are in changes; run the same command again"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert len(list(Path("changes").iterdir())) == 2
    with monkeypatch.context() as patch:
        comes_at(patch, f"{pocket_changes.__name__}.replay_prompts", number)
        assert main(["data", "make", "prompts", "--n", "5", "-o", "prompts.jsonl"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == "stopped: nothing was written; run the same command again"
    assert not Path("prompts.jsonl").exists()


def test_a_second_sigterm_kills(tmp_path: Path) -> None:
    """A verb that does not come back from what it does can still be ended."""
    process = Started(stuck, folder=tmp_path, environment={"STUCK": str(tmp_path)})
    process.wait_until((tmp_path / "ready").exists)
    process.send(signal.SIGTERM)
    process.wait_until((tmp_path / "heard").exists)
    process.send(signal.SIGTERM)
    code, out, err = process.finish()
    assert code == -signal.SIGTERM, (out, err)


def stuck() -> int:
    """A verb that takes the first signal for nothing."""
    import time

    from posttrain.cli.stopping import unwinding

    folder = Path(os.environ["STUCK"])
    with unwinding():
        try:
            (folder / "ready").touch()
            time.sleep(100)
        except KeyboardInterrupt:
            (folder / "heard").touch()
            time.sleep(100)
    return 0
