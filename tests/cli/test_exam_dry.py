"""`posttrain exam --dry-run`: what would be asked of whom, and what is wrong with the models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.cli.main import main
from tests.cli.test_exam_tasks import CHANGE, ROWS
from tests.exams.tasks.told import write_rows


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_rows(tmp_path / "questions.jsonl", ROWS)


def test_a_dry_run_of_an_exam(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would be asked of whom; nothing is loaded or written."""
    (tmp_path / "it.yaml").write_text(CHANGE)
    words = ["exam", "pocket:chat", "--before", "pocket:base", "--exam", "mmlu=questions.jsonl", "-c", "it.yaml"]
    words += ["--output", "out", "--dry-run"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        "model       pocket:chat",
        "before      pocket:base",
        "exam        it: 2 items, 2 requests to each",
        "exam        mmlu: 20 items, 80 requests to each",  # a request per choice
        "floor       the model before is asked the same in other arithmetic",
        "output      out",
    ]
    assert lines[-1].startswith("time        about ")
    assert not (tmp_path / "out").exists()
    assert main([*words, "--limit", "1", "--noise-floor", "none", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["models"], told["noise_floor"]) == (["pocket:base", "pocket:chat"], False)
    assert told["exams"] == [
        {"exam": "it", "items": 2, "requests": 2},
        {"exam": "mmlu", "items": 1, "requests": 4},
    ]
    assert 0 < told["wall_s"] < 600
    assert main(["exam", "nobody/nothing", "--exam", "mmlu=questions.jsonl", "--dry-run"]) == 0
    assert "time        not guessed: nobody/nothing: " in capsys.readouterr().out
    assert main(["exam", "pocket:chat", "--exam", "mmlu=nowhere.jsonl", "--dry-run"]) == 3
    unfinished = tmp_path / "runs" / "lora"
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "config.yaml").write_text("model: pocket:chat\n")
    (tmp_path / "bare").mkdir()
    for model, other, cause in (
        ("./nothing", "pocket:base", "no such model folder"),
        ("pocket:chat", "./nothing", "no such model folder"),
        ("runs/lora", "pocket:chat", "this training has not finished: there is no model in it yet"),
        ("bare", "pocket:chat", "no config.json: not a model folder"),
    ):
        assert main(["exam", model, "--before", other, "--exam", "mmlu=questions.jsonl", "--dry-run"]) == 3
        told = capsys.readouterr()
        assert cause in told.err
        assert told.out == ""
    assert main(["exam", "pocket:chat", "--dry-run"]) == 2
