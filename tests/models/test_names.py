"""The name of the real model; other names are tested where models are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import MissingError
from posttrain.models.names import resolve


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTTRAIN_REAL", raising=False)
    return tmp_path


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_not_made_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"smollm2: the real model is not in \.real/smollm2; .*make real-model"):
        resolve("smollm2")
    monkeypatch.setenv("POSTTRAIN_REAL", "其他")
    with pytest.raises(MissingError, match=r"not in 其他 \(POSTTRAIN_REAL\)"):
        resolve("smollm2")


def test_where_it_is_looked_for(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(elsewhere / ".real" / "smollm2")
    assert resolve("smollm2") == ".real/smollm2"
    monkeypatch.setenv("POSTTRAIN_REAL", str(folder(elsewhere / "其他")))
    assert resolve("smollm2") == str(elsewhere / "其他")
    folder(elsewhere / "smollm2")
    assert resolve("smollm2") == "smollm2"  # a folder of that name goes first


def test_a_gguf_file_that_is_not_there(elsewhere: Path) -> None:
    (elsewhere / "qwen.gguf").write_bytes(b"")
    with pytest.raises(MissingError, match=r"no such GGUF file; did you mean 'qwen\.gguf'\?"):
        resolve("qwem.gguf")
