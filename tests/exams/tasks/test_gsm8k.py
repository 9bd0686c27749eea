"""Sums: numbers as people write them, strict and flexible extraction, shots that are not asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.inference.protocol import Answer, Plain
from tests.exams.tasks.told import build, judged, scores_of, text_of, write_rows

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k_test.jsonl"
ROWS = [{"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(1, 13)]


def test_strict_and_flexible(tmp_path: Path) -> None:
    write_rows(tmp_path / "g.jsonl", ROWS[:9])
    task = build("gsm8k", tmp_path, path="g.jsonl")  # 8 shots leave one question: 9 + 9
    (item,) = task.items
    marked, loose, wrong, late = (
        judged(task, said)[0] for said in ("#### 18", "It is 18.", "#### 19", "#### 18\nor 5")
    )
    assert (marked.scores["flexible"], marked.scores["strict"]) == (1.0, 1.0)
    assert (loose.scores["flexible"], loose.scores["strict"]) == (1.0, 0.0)
    assert (wrong.scores["flexible"], wrong.scores["strict"]) == (0.0, 0.0)
    assert late.correct
    assert scores_of(task, [marked, loose])["strict"] == 0.5
    assert item.id == "g-9"


def test_shots_are_worked_and_not_asked(tmp_path: Path) -> None:
    write_rows(tmp_path / "g.jsonl", ROWS)
    task = build("gsm8k", tmp_path, path="g.jsonl", shots=2)
    prompt = task.items[0].asks[0].prompt
    assert isinstance(prompt, Plain)
    assert prompt.text == (
        "Question: What is 1 + 1?\nAnswer: 1 + 1 = 2\n#### 2\n\nQuestion: What is 2 + 2?\nAnswer: 2 + 2 = 4\n#### 4\n\n"
        "Question: What is 3 + 3?\nAnswer:"
    )
    assert task.items[0].question == "What is 3 + 3?"
    assert len(task.items) == 10
    chat = build("gsm8k", tmp_path, path="g.jsonl", shots=2, template="chat").items[0].asks[0].prompt
    assert [m.role for m in chat] == ["user", "assistant"] * 2 + ["user"]  # type: ignore[union-attr]
    write_rows(tmp_path / "train.jsonl", ROWS[:3])
    other = build("gsm8k", tmp_path, path="g.jsonl", shots=2, shots_path="train.jsonl")
    assert len(other.items) == 12
    assert other.fingerprint != task.fingerprint


def test_chinese_questions_have_chinese_labels(tmp_path: Path) -> None:
    rows = [{"question": f"小明有{i}顆糖，又買了一顆，共有幾顆？", "answer": f"#### {i + 1}"} for i in range(3)]
    write_rows(tmp_path / "g.jsonl", rows)
    task = build("gsm8k", tmp_path, path="g.jsonl", shots=1)
    assert text_of(task.items[0].asks[0].prompt).startswith("問題：小明有0顆糖")
    assert judged(task, "一共是兩顆")[0].correct


def test_bad_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "g.jsonl", [{"question": "q", "answer": "none"}, {"question": ""}])
    with pytest.raises(DataError) as error:
        build("gsm8k", tmp_path, path="g.jsonl", shots=0)
    assert "holds no number" in str(error.value)
    assert "'question' is empty" in str(error.value)
    write_rows(tmp_path / "h.jsonl", ROWS[:8])
    with pytest.raises(ConfigError, match="none is left to ask"):
        build("gsm8k", tmp_path, path="h.jsonl")
    with pytest.raises(ConfigError, match="'path' is missing"):
        build("gsm8k", tmp_path)


@pytest.mark.skipif(not GSM8K.exists(), reason=f"{GSM8K} is not there")
def test_the_worked_answers_of_gsm8k_are_right() -> None:
    task = build("gsm8k", GSM8K.parent, path=GSM8K.name)
    assert len(task.items) == 1319 - 8
    right = [task.judge(item, [Answer(item.doc["answer"], 1, True)]).scores for item in task.items]
    assert all(s["strict"] == s["flexible"] == 1.0 for s in right)
