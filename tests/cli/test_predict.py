"""`posttrain predict` in a process of its own's stead: rows, scores, and what it says of models without a head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.models.heads import load_head_model
from posttrain.models.notes import Head
from posttrain.models.save import save_model
from tests.pico import pico


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    base = pico("llama", root)
    heads: tuple[tuple[Head, tuple[str, ...]], ...] = (
        ("sequence", ("bad", "good")), ("token", ("B-X", "O")), ("answer", ())
    )  # fmt: skip
    for head, labels in heads:
        loaded = load_head_model(str(base), head, labels, device="cpu", say=lambda _: None)
        save_model(loaded.model, loaded.tokenizer, root / head)
    return root


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_classes(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "好", "label": "good"}, {"text": "Hi"}, {"text": "a", "text2": "b", "label": "bad"}]
    file = write(tmp_path / "rows.jsonl", rows)
    assert main(["predict", str(models / "sequence"), file]) == 0
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [row["text"] for row in found] == ["好", "Hi", "a"]
    assert all(row["label"] in row["probabilities"] for row in found)
    assert [row.get("gold") for row in found] == ["good", None, "bad"]
    right = sum(row["label"] == row["gold"] for row in found if "gold" in row) / 2
    assert f"2 of 3 rows have labels: accuracy {right:.4f}" in said.err


def test_the_folder_of_a_training_stands_for_its_model(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "sequence", tmp_path / "mood" / "model")
    (tmp_path / "mood" / "result.json").write_text("{}")
    file = write(tmp_path / "rows.jsonl", [{"text": "Hi"}])
    assert main(["predict", str(tmp_path / "mood"), file, "--json"]) == 0
    by_run = capsys.readouterr()
    assert by_run.err == f"{tmp_path / 'mood'}: its model is {tmp_path / 'mood' / 'model'}\n"
    assert main(["predict", str(tmp_path / "mood" / "model"), file, "--json"]) == 0
    assert capsys.readouterr() == (by_run.out, "")


def test_tags_to_a_file(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.conll").write_text("Ada B-X\nran O\n\nHi O\n", encoding="utf-8")
    output = tmp_path / "new" / "out.jsonl"
    assert main(["predict", str(models / "token"), str(tmp_path / "s.conll"), "-o", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [len(row["tags"]) for row in found] == [2, 1]
    assert found[0]["gold"] == ["B-X", "O"]


def test_answers_as_one_document(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = "Ada ran."
    rows: list[dict[str, Any]] = [
        {"id": "q1", "question": "Who?", "context": context, "answers": [{"text": "Ada", "answer_start": 0}]},
        {"question": "Who?", "context": context},
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    assert main(["predict", str(models / "answer"), file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["gold"]) == (2, 1)
    assert set(found["scores"]) == {"exact_match", "f1"}
    for row in found["predictions"]:
        assert context[row["answer_start"] :].startswith(row["answer"])
    assert found["predictions"][0]["id"] == "q1"
    assert found["predictions"][0]["gold"] == ["Ada"]


def test_what_it_cannot(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": "x"}])
    assert main(["predict", str(models / "llama"), file]) == 1
    assert "has no head for classes, tags or answers" in capsys.readouterr().err
    assert main(["predict", str(models / "token"), file]) == 1
    assert "'tokens' must be a list of words" in capsys.readouterr().err
    assert main(["predict", str(models / "nothing"), file]) == 3
    assert main(["chat", str(models / "sequence"), "--once", "Hi"]) == 1
    assert "no language-model head: it cannot generate" in capsys.readouterr().err
    assert main(["exam", str(models / "sequence"), "--exam", "refusal"]) != 0
    assert "no language-model head" in capsys.readouterr().err
