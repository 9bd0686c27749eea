"""A full disk, by every name it goes by: said, nothing half-written left, what was there kept."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from posttrain.errors import DiskError
from posttrain.models.disk import append, disk_problem, write_whole, writing
from posttrain.models.load import load_model
from posttrain.models.save import save_model
from tests.pico import tokenizer
from tests.training.tiny import PicoPath, load

unix = pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of files")
SPACE = os.strerror(errno.ENOSPC)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may be larger: the system refuses as it does when the disk is full."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, SPACE), SPACE),
        (OSError(errno.EDQUOT, "quota"), os.strerror(errno.EDQUOT)),
        (SafetensorError(f"Error while serializing: I/O error: {SPACE} (os error 28)"), SPACE),
        (Exception(f"{SPACE} (os error 28)"), SPACE),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "PyTorch could not"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "PyTorch could not"),
        (OSError(errno.ENOENT, "no such file"), None),
        (SafetensorError("Error while deserializing header: header too large"), None),
        (SafetensorError("I/O error: No such file or directory (os error 2)"), None),
        (RuntimeError("CUDA out of memory"), None),
        (ValueError("28"), None),
    ],
)
def test_names_of_a_full_disk(tmp_path: Path, error: Exception, reason: str | None) -> None:
    found = disk_problem(error, tmp_path / "not" / "there")
    assert (found is not None) == (reason is not None)
    if found is not None and reason is not None:
        assert found.cause.startswith(f"cannot be written: {reason}")
        assert found.location == str(tmp_path / "not" / "there")
        assert "what was there before is kept" in found.mend


def test_torch_says_no_reason_so_the_disk_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    found = disk_problem(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), tmp_path)
    assert found is not None
    assert found.cause == f"cannot be written: {SPACE}"


def test_it_is_asked_before_the_half_written_file_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = tmp_path / "half"
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096 if half.exists() else 1 << 40))

    def fails() -> None:
        with writing(tmp_path / "whole", half):
            half.touch()
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    with pytest.raises(DiskError, match=SPACE):
        fails()
    assert not half.exists()


def big_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(40_000)}, path)


def big_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(40_000)}, path)


def big_text(path: Path) -> None:
    path.write_text("a" * 160_000, encoding="utf-8")


def big_tokenizer(path: Path) -> None:
    path.mkdir()
    tokenizer().save_pretrained(path)


@unix
@pytest.mark.parametrize("write", [big_safetensors, big_torch, big_text, big_tokenizer])
def test_what_the_writers_really_raise(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Each has its own error for the same refusal."""
    half = tmp_path / "half"
    with (
        small_disk(2_000),
        pytest.raises(DiskError, match="whole: cannot be written: "),
        writing(tmp_path / "whole", half),
    ):
        write(half)
    assert not list(tmp_path.iterdir())


@unix
def test_an_old_file_stays_and_lines_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    write_whole(path, "first\n")
    append(path, "second 二\n")
    with small_disk(100):
        with pytest.raises(DiskError, match=r"lines\.jsonl: cannot be written: "):
            append(path, "x" * 300 + "\n")
        assert path.read_text(encoding="utf-8") == "first\nsecond 二\n"  # nothing of the third
        append(path, "fits\n")
        with pytest.raises(DiskError):
            write_whole(path, "y" * 300)
    assert path.read_text(encoding="utf-8") == "first\nsecond 二\nfits\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_device_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(DiskError, match=rf"lines\.jsonl: cannot be written: {SPACE}"):
        append(path, "one\n")


def test_another_error_stays_itself_and_leaves_nothing(tmp_path: Path) -> None:
    half = tmp_path / "half"

    def fails() -> None:
        with writing(tmp_path / "whole", half):
            half.mkdir()
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    assert not list(tmp_path.iterdir())


@unix
@pytest.mark.parametrize("kind", ["model", "lora", "fishmask"])
def test_a_model_that_cannot_be_saved_leaves_the_old_one(pico_path: PicoPath, tmp_path: Path, kind: str) -> None:
    from posttrain.config.load import check
    from posttrain.registry import load as entry

    loaded = load(pico_path)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    model: Any = loaded.model
    if kind != "model":
        tuner = entry("tuner", kind)
        model = tuner.function(model, check({"kind": kind}, tuner.config, "tuner"))
    with small_disk(1_000), pytest.raises(DiskError, match=r"m: cannot be written: .*; free some space"):
        save_model(model, loaded.tokenizer, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    load_model(str(tmp_path / "m"), device="cpu")
    save_model(model, loaded.tokenizer, tmp_path / "m")  # there is room again
