"""One writer per folder, whatever happened to the last one; a refused run leaves everything as it was."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, PosttrainError
from posttrain.training.folder import RunFolder
from posttrain.training.lock import LOCK, only_one
from posttrain.training.run import train
from tests.training.tiny import PicoPath, config, load, rows

HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0); file.write(str(os.getpid())); file.flush()
print("held", flush=True)
time.sleep(60)
"""
unix = pytest.mark.skipif(sys.platform == "win32", reason="flock")


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """One that holds the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    started = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / LOCK)], stdout=subprocess.PIPE, encoding="utf-8"
    )
    with started:
        assert started.stdout is not None
        assert started.stdout.readline() == "held\n"
        try:
            yield started
        finally:
            started.kill()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@unix
def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with only_one(folder):
        with (
            pytest.raises(PosttrainError, match="a: another run is working in this folder; wait for it"),
            only_one(folder),
        ):
            pass
        with only_one(tmp_path / "runs" / "b"):
            pass
    assert not folder.exists()  # nothing was written
    with only_one(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


@unix
def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    with another_process(tmp_path) as other:
        words = rf"another run \(process {other.pid}\) is working in this folder"
        with pytest.raises(PosttrainError, match=words), only_one(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / LOCK).read_text() == str(other.pid)  # stale, and stops nobody
        with only_one(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


@unix
def test_a_lock_that_its_holder_has_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for nothing holds a file that is no longer in the folder."""
    from posttrain.training import lock

    own = lock._lock
    removed: list[bool] = []

    def late(file: Any) -> None:
        own(file)
        if not removed:
            removed.append(True)
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(lock, "_lock", late)
    with only_one(tmp_path):
        assert removed
        assert (tmp_path / LOCK).is_file()
        with pytest.raises(PosttrainError, match="another run"), only_one(tmp_path):
            pass


SETTINGS = {"objective": "sft", "tuner": "bitfit", "optimizer": {"max_steps": 2}, "save_every_steps": 1}


def go(pico_path: PicoPath, output: Path, **more: Any) -> Any:
    return train(config(**SETTINGS | more), loaded=load(pico_path, "gpt2"), rows=rows(4), output=output)


@unix
def test_two_trainings_do_not_write_into_one_folder(pico_path: PicoPath, tmp_path: Path) -> None:
    output = tmp_path / "run"
    go(pico_path, output)
    before = contents(output)
    assert LOCK not in before
    with another_process(output):
        for resume in (True, False):
            with pytest.raises(PosttrainError, match="another run"):
                train(config(**SETTINGS), loaded=load(pico_path, "gpt2"), rows=rows(4), output=output, resume=resume)
        assert {name: text for name, text in contents(output).items() if name != LOCK} == before
    assert go(pico_path, output).steps == 2  # finished, and read back


@unix
def test_a_study_s_cell_is_held_while_it_trains(pico_path: PicoPath, tmp_path: Path) -> None:
    seen: list[str] = []

    def second(folder: Path, step: int) -> None:
        with pytest.raises(PosttrainError, match="another run"):
            go(pico_path, tmp_path / "cell" / "training")
        seen.append(folder.name)

    settings = config(**SETTINGS)
    train(
        settings,
        loaded=load(pico_path, "gpt2"),
        rows=rows(4),
        output=tmp_path / "cell" / "training",
        on_checkpoint=second,
    )
    assert seen == ["step-1", "step-2"]


@pytest.mark.parametrize("change", [{"seed": 7}, {"optimizer": {"max_steps": 3}}])
@pytest.mark.parametrize("finished", [True, False])
def test_a_refused_resume_has_written_nothing(
    pico_path: PicoPath, tmp_path: Path, change: dict[str, Any], finished: bool
) -> None:
    output = tmp_path / "run"
    go(pico_path, output)
    if not finished:  # as a kill leaves it
        shutil.rmtree(output / "model")
        (output / "result.json").unlink()
    (output / "env.json").write_text("what it ran on\n", encoding="utf-8")
    before = contents(output)
    with pytest.raises(ConfigError, match="was made by another configuration and is not resumed"):
        go(pico_path, output, **change)
    assert contents(output) == before


def test_a_folder_of_other_things_is_left_as_it_is(pico_path: PicoPath, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        go(pico_path, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "notes.txt").rename(tmp_path / LOCK)  # of a run that was killed before it wrote anything
    assert go(pico_path, tmp_path).steps == 2


def test_what_a_run_found_is_not_taken_for_another(tmp_path: Path) -> None:
    """A range test's rate, of a run that was stopped before its first checkpoint."""
    folder = RunFolder(tmp_path / "run")
    folder.open(config(), {"rows": "a"}, resume=True)
    folder.keep_rate({"rate": 3e-4})
    folder.open(config(), {"rows": "a"}, resume=True)
    assert folder.rate() == 3e-4
    folder.open(config(), {"rows": "b"}, resume=True)
    assert folder.rate() is None


@unix
def test_a_full_disk_keeps_nobody_from_holding_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's number is for the message only."""

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with only_one(tmp_path / "a"):
            patched.undo()
            with pytest.raises(PosttrainError, match="a: another run is working"), only_one(tmp_path / "a"):
                raise AssertionError
    assert not (tmp_path / "a").exists()
