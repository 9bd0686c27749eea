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


def test_a_dry_run_names_the_texts_that_a_model_cannot_be_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, with file and line, of every kind of ask; no weights are read."""
    monkeypatch.setattr("posttrain.models.load.load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    bad = "What is <|user|>?"
    monkeypatch.chdir(tmp_path)
    choices = {"choices": ["one", "two"], "answer": 0}
    write_rows(tmp_path / "questions.jsonl", [{"question": q, **choices} for q in ("One?", "Two?", bad)])
    write_rows(tmp_path / "sums.jsonl", [{"question": q, "answer": "#### 1"} for q in ("One?", bad)])
    write_rows(tmp_path / "texts.jsonl", [{"text": "It rains."}, {"text": bad}])
    (tmp_path / "it.yaml").write_text(
        f"name: it\ntarget: [{{prompt: Who?, answer: me}}]\nlocality: {{unrelated: ['{bad}']}}\n"
    )
    (tmp_path / "exams.yaml").write_text(
        "exams:\n- {kind: mmlu, path: questions.jsonl, shots: 0}\n- {kind: gsm8k, path: sums.jsonl, shots: 0}\n"
        "- {kind: perplexity, path: texts.jsonl}\n"
    )
    words = ["exam", "pocket:chat", "--dry-run", "--exams", "exams.yaml"]
    assert main(words) == 1
    said = capsys.readouterr().err
    for place in ("questions.jsonl:3 (exam mmlu", "sums.jsonl:2 (exam gsm8k", "texts.jsonl:2 (exam perplexity"):
        assert said.count(place) == 1
    assert said.count("holds the control token '<|user|>'") == 3
    assert main(["exam", "pocket:chat", "--dry-run", "-c", "it.yaml"]) == 1
    said = capsys.readouterr().err
    assert "it.yaml:3 (change it, locality.unrelated 1)" in said
    assert "holds the control token '<|user|>'" in said
