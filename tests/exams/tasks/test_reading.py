"""Reading comprehension: formats, scores by hand, passages cut around answers, bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError, MissingError
from tests.exams.tasks.told import build, judged, scores_of, text_of, write_rows

DRCD = Path(__file__).parents[4] / "shared" / "data" / "drcd_dev.json"


def squad(path: Path, *questions: dict[str, Any], context: str) -> Path:
    paragraphs = [{"context": context, "qas": list(questions)}]
    path.write_text(json.dumps({"version": "x", "data": [{"title": "T", "paragraphs": paragraphs}]}), "utf-8")
    return path


def answers(context: str, *texts: str) -> list[dict[str, Any]]:
    return [{"text": text, "answer_start": context.find(text)} for text in texts]


def test_english_is_squads_em_and_f1(tmp_path: Path) -> None:
    context = "The cat sat on the red mat in Paris."
    path = squad(
        tmp_path / "a.json",
        {"id": "1", "question": "Where?", "answers": answers(context, "the red mat", "red mat")},
        {"id": "2", "question": "Who?", "answers": answers(context, "cat")},
        context=context,
    )
    task = build("reading", tmp_path, path="a.json")
    said = {"Where?": "The red mat.\nAnd more", "Who?": "a black cat"}
    samples = judged(task, lambda prompt: next(a for q, a in said.items() if q in prompt))
    assert samples[0].answer == "The red mat."
    assert samples[0].scores == {"em": 1.0, "f1": 1.0}
    # black, cat against cat: P 1/2, R 1 -> 2/3
    assert samples[1].scores["f1"] == pytest.approx(2 / 3)
    assert [s.correct for s in samples] == [True, False]
    assert scores_of(task, samples)["em"] == 0.5
    assert path.exists()


def test_chinese_scores_are_named_apart(tmp_path: Path) -> None:
    context = "臺北市是中華民國的首都，位於臺灣北部。"
    squad(
        tmp_path / "a.json",
        {"id": "1", "question": "首都在哪？", "answers": answers(context, "臺北市")},
        context=context,
    )
    task = build("reading", tmp_path, path="a.json")
    sample = judged(task, "北市臺")[0]
    assert task.headline == "f1_char_bag"
    assert sample.scores["em_zh"] == 0.0
    assert sample.scores["f1_char_bag"] == 1.0  # the same characters
    assert sample.scores["f1_cmrc_lcs"] == pytest.approx(2 / 3)  # 北市 of 3 and 3
    assert sample.scores["f1_char_subsequence"] == pytest.approx(2 / 3)
    assert "問題：首都在哪？" in text_of(task.items[0].asks[0].prompt)


def test_unanswerable_questions_are_right_when_declined(tmp_path: Path) -> None:
    context = "The cat sat."
    squad(
        tmp_path / "a.json",
        {"id": "1", "question": "Who sat?", "answers": answers(context, "cat"), "is_impossible": False},
        {
            "id": "2",
            "question": "Who flew?",
            "answers": [],
            "is_impossible": True,
            "plausible_answers": answers(context, "cat"),
        },
        context=context,
    )
    task = build("reading", tmp_path, path="a.json")
    declined, guessed = (judged(task, said) for said in ("Unanswerable.", "cat"))
    assert [s.scores["em"] for s in declined] == [0.0, 1.0]
    assert [s.scores["em"] for s in guessed] == [1.0, 0.0]
    assert declined[1].scores["unanswerable.em"] == 1.0
    assert "unanswerable.em" not in declined[0].scores
    assert any("1 questions have no answer" in note for note in task.notes)
    assert "unanswerable" in text_of(task.items[0].asks[0].prompt)


def test_a_cut_passage_still_holds_the_answer_and_is_counted(tmp_path: Path) -> None:
    context = "x" * 500 + " needle " + "y" * 500
    rows = [{"id": i, "passage": context, "question": f"what {i}?", "answers": ["needle"]} for i in range(20)]
    write_rows(tmp_path / "a.jsonl", [*rows, {"id": "s", "passage": "short", "question": "q?", "answers": "short"}])
    task = build("reading", tmp_path, path="a.jsonl", passage_characters=60)
    passages = [text_of(i.asks[0].prompt).split("Passage: ")[1].split("\n")[0] for i in task.items[:20]]
    assert all("needle" in p and len(p) <= 60 for p in passages)
    assert len({p.index("needle") for p in passages}) > 5  # not always in the middle
    assert task.notes == ("20 of 21 passages were cut to 60 characters around an answer",)


def test_every_question_contains_what_a_perturbation_changes(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"passage": "p q", "question": "what?", "answers": ["p"]}])
    for template in ("auto", "plain"):
        (item,) = build("reading", tmp_path, path="a.jsonl", template=template).items
        assert item.question in text_of(item.asks[0].prompt)


def test_all_problems_of_a_file_at_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"passage": "p"}, {"passage": "p", "question": "q", "answers": [1]}, {"x": 1}])
    with pytest.raises(DataError) as error:
        build("reading", tmp_path, path="a.jsonl")
    places = {p.location.rsplit(":", 1)[-1] for p in error.value.problems}
    assert {"1", "2", "3"} <= places
    with pytest.raises(MissingError, match=r"b\.jsonl"):
        build("reading", tmp_path, path="b.jsonl")
    (tmp_path / "c.json").write_text('{"data": [{"paragraphs": [{"context": 1}]}]}', "utf-8")
    with pytest.raises(DataError, match=r"data\[0\].paragraphs\[0\]"):
        build("reading", tmp_path, path="c.json")


@pytest.mark.skipif(not DRCD.exists(), reason=f"{DRCD} is not there")
def test_drcd_as_it_is() -> None:
    task = build("reading", DRCD.parent, path=DRCD.name)
    assert len(task.items) == 3524
    assert "|zh|" in task.signature
    # the gold answers themselves score 1 in everything but CMRC's, whose list of marks is its own
    by_id = {item.id: item for item in task.items}
    samples = judged(build("reading", DRCD.parent, path=DRCD.name, limit=50), "x")
    assert all(s.scores["em_zh"] == 0.0 for s in samples)
    assert len(samples) == 50
    assert {s.id for s in samples} <= set(by_id)


@pytest.mark.parametrize("start", ["-Infinity", "NaN", '"x"', "{}"])
def test_an_answer_that_starts_nowhere(tmp_path: Path, start: str) -> None:
    answer = f'{{"text": "Ada", "answer_start": {start}}}'
    asked = f'{{"id": "1", "question": "Who?", "answers": [{answer}]}}'
    text = f'{{"data": [{{"paragraphs": [{{"context": "Ada.", "qas": [{asked}]}}]}}]}}'
    (tmp_path / "q.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"q.json#1: a question needs 'id', 'question' and 'answers'"):
        build("reading", tmp_path, path="q.json")
