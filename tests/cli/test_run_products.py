"""What `posttrain run` says and leaves where methods take each other's models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.cli.main import main
from tests.studies.conftest import TRAIN, write_study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["run", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_model_that_another_method_takes_is_counted_and_said(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    taught = {**TRAIN, "name": "taught"}
    half = {"kind": "blend", "name": "half", "start": "taught"}
    path = write_study(study.parent, methods=[taught, half], changes="changes/france.yaml")
    _, out, _ = run(capsys, str(path), "--dry-run", "--json")
    needed = json.loads(out)["disk_gib"]
    _, out, _ = run(capsys, str(path), "--dry-run")
    words = "only models that other methods take are kept (keep: none); --set keep=final keeps each cell's final one"
    assert f"weights     {words}" in out
    code, _, err = run(capsys, str(path))
    assert (code, err.splitlines()[1]) == (0, f"weights: {words}")
    (model,) = Path("runs/tiny").glob("cells/*/training/model/model.safetensors")
    write_study(study.parent, methods=[taught], changes="changes/france.yaml")
    _, out, _ = run(capsys, str(path), "--dry-run", "--json")
    assert needed - json.loads(out)["disk_gib"] == pytest.approx(model.stat().st_size / 2**30, rel=0.2)


def test_a_method_that_a_sequence_repeats_without_teaching_is_said(
    capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    methods = [{**TRAIN, "name": "taught"}, {"kind": "blend", "name": "half", "start": "taught"}]
    path = write_study(study.parent, methods=methods, changes_as={"sequence": 1})
    _, out, _ = run(capsys, str(path), "--dry-run")
    assert "method 'half': applied 2 times, once per change of the sequence" in out
    assert "method 'taught'" not in out
    path = write_study(study.parent, methods=methods, changes_as="together")
    assert "applied" not in run(capsys, str(path), "--dry-run")[1]


def test_what_killed_processes_and_earlier_settings_have_left_goes(
    capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    blended = [{**TRAIN, "name": "taught"}, {"kind": "blend", "name": "half", "start": "taught"}]
    path = write_study(study.parent, methods=blended, changes="changes/france.yaml")
    assert run(capsys, str(path), "--set", "keep=final")[0] == 0
    (cell,) = Path("runs/tiny/cells").glob("*--half--*")
    assert (cell / "model").is_dir()
    left = [Path("runs/tiny/.tmp-results.json.1"), cell / ".tmp-card.md.1", cell / "exams/.tmp-g.jsonl.1"]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half", encoding="utf-8")
    assert run(capsys, str(path))[0] == 0
    assert not (cell / "model").exists()
    assert [file for file in left if file.exists()] == []
