"""`posttrain exam --dry-run`: what a model cannot be asked is said before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.cli.main import main
from tests.exams.tasks.told import write_rows


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
