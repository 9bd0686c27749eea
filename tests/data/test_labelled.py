"""Labelled texts, tagged tokens, questions: what is read, and what is said of rows that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.readers import DataSource, Format, read_records
from posttrain.data.records import LabelledText, ReadingQuestion, Record, SpanAnswer, TaggedTokens
from posttrain.errors import DataError

DRCD = Path(__file__).parents[2].parent / "shared" / "data" / "drcd_dev.json"


def read(tmp_path: Path, rows: list[Any], format: Format, columns: dict[str, str] | None = None) -> list[Record]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return read_records(DataSource(path=str(path), format=format, columns=columns or {})).records


def refused(tmp_path: Path, row: Any, format: Format) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, [row], format)
    assert caught.value.problems[0].location.endswith("rows.jsonl:1")
    return str(caught.value)


def test_labelled_texts(tmp_path: Path) -> None:
    rows = [
        {"text": "好", "label": "good"},
        {"text": "x", "label": 3},
        {"text": "x", "label": True},
        {"text": "x", "labels": ["a", "b"]},
        {"text": "x", "label": []},
        {"text": "x", "text2": "y", "label": "a"},
        {"premise": "p", "hypothesis": "h", "label": "a"},
        {"text": "x"},
    ]
    found = read(tmp_path, rows, "labels")
    assert [r.labels for r in found if isinstance(r, LabelledText)] == [
        ("good",), ("3",), ("true",), ("a", "b"), (), ("a",), ("a",), ()
    ]  # fmt: skip
    assert [r.gold for r in found if isinstance(r, LabelledText)] == [True] * 7 + [False]
    assert found[5:7] == [
        LabelledText("x", ("a",), f"{tmp_path}/rows.jsonl:6", "y"),
        LabelledText("p", ("a",), f"{tmp_path}/rows.jsonl:7", "h"),
    ]


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows = [{"sentence": "好", "mood": "good"}]
    (found,) = read(tmp_path, rows, "labels", {"text": "sentence", "label": "mood"})
    assert isinstance(found, LabelledText)
    assert (found.text, found.labels) == ("好", ("good",))


def test_labelled_texts_that_cannot_be_read(tmp_path: Path) -> None:
    assert "'text' is empty" in refused(tmp_path, {"text": " ", "label": "a"}, "labels")
    assert "'text' is missing" in refused(tmp_path, {"label": "a"}, "labels")
    assert "must be a name, got a number" in refused(tmp_path, {"text": "x", "label": 0.5}, "labels")
    assert "the label 'a' stands twice" in refused(tmp_path, {"text": "x", "label": ["a", "a"]}, "labels")
    assert "'hypothesis' is missing" in refused(tmp_path, {"premise": "x", "label": "a"}, "labels")


def test_tagged_tokens(tmp_path: Path) -> None:
    found = read(tmp_path, [{"tokens": ["Ada", "ran"], "tags": ["B-PER", "O"]}], "auto")
    assert found == [TaggedTokens(("Ada", "ran"), ("B-PER", "O"), f"{tmp_path}/rows.jsonl:1")]
    assert "1 tags for 2 tokens" in refused(tmp_path, {"tokens": ["a", "b"], "tags": ["O"]}, "tags")
    assert "none of them empty" in refused(tmp_path, {"tokens": ["a", ""], "tags": ["O", "O"]}, "tags")
    assert "must be a list" in refused(tmp_path, {"tokens": ["a"], "tags": "O"}, "tags")


def test_a_conll_file(tmp_path: Path) -> None:
    path = tmp_path / "ner.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\nAda NNP B-NP B-PER\nran VBD B-VP O\n\n\n臺灣 B-LOC\r\n的\tO\n", encoding="utf-8"
    )
    assert read_records(DataSource(path=str(path))).records == [
        TaggedTokens(("Ada", "ran"), ("B-PER", "O"), f"{path}:3"),
        TaggedTokens(("臺灣", "的"), ("B-LOC", "O"), f"{path}:7"),
    ]
    path.write_text("Ada B-PER\nran\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ner.conll:1: line 2 has one column"):
        read_records(DataSource(path=str(path)))


def test_questions(tmp_path: Path) -> None:
    context = "Ada wrote to Babbage. Babbage answered."
    rows = [
        {"id": 7, "question": "Who wrote?", "context": context, "answers": [{"text": "Ada", "answer_start": 0}]},
        {"question": "Who?", "context": context, "answers": {"text": ["Ada", "Ada"], "answer_start": [0, 0]}},
        {"question": "Who?", "context": context, "answers": [{"text": "answered"}]},
        {"question": "Who?", "context": context, "answers": []},
        {"question": "Who?", "context": context, "is_impossible": True},
        {"question": "Who?", "context": context},
    ]
    found = [r for r in read(tmp_path, rows, "answers") if isinstance(r, ReadingQuestion)]
    ada = (SpanAnswer("Ada", 0),)
    assert [r.answers for r in found] == [ada, ada, (SpanAnswer("answered", 30),), (), (), ()]
    assert [r.gold for r in found] == [True] * 5 + [False]
    assert found[0].id == "7"


def test_answers_must_stand_where_they_are_said_to(tmp_path: Path) -> None:
    row = {"question": "Who?", "context": "Ada wrote to Babbage. Babbage answered."}
    wrong = refused(tmp_path, {**row, "answers": [{"text": "Babbage", "answer_start": 12}]}, "answers")
    assert "at character 12 the context has ' Babbag', not the answer 'Babbage'; it stands at 13" in wrong
    nowhere = refused(tmp_path, {**row, "answers": [{"text": "Lovelace", "answer_start": 0}]}, "answers")
    assert "must be a part of the context, as it is" in nowhere
    twice = refused(tmp_path, {**row, "answers": [{"text": "Babbage"}]}, "answers")
    assert "the answer stands 2 times in the context" in twice
    assert "got a string" in refused(tmp_path, {**row, "answers": [{"text": "Ada", "answer_start": "0"}]}, "answers")
    assert "must be a list of objects" in refused(tmp_path, {**row, "answers": ["Ada"]}, "answers")


def test_a_squad_file(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    qas = [{"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ada ran.", "qas": qas}]}]}), encoding="utf-8")
    (found,) = read_records(DataSource(path=str(path))).records
    assert found == ReadingQuestion("Who?", "Ada ran.", (SpanAnswer("Ada", 0),), f"{path}#q1", "q1")
    path.write_text('{"data": [{"paragraphs": [{"qas": []}]}]}', encoding="utf-8")
    with pytest.raises(DataError, match="no rows"):
        read_records(DataSource(path=str(path)))
    path.write_text('{"data": [{"paragraphs": [{"qas": [{}]}]}]}', encoding="utf-8")
    with pytest.raises(DataError, match="not a SQuAD file"):
        read_records(DataSource(path=str(path)))


@pytest.mark.skipif(not DRCD.is_file(), reason="the DRCD file is not here")
def test_drcd() -> None:
    found = read_records(DataSource(path=str(DRCD))).records
    assert len(found) == 3524
    assert all(isinstance(r, ReadingQuestion) and r.answers for r in found)


def test_hub_classes_have_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"]),
         "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"]))}
    )  # fmt: skip
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1], "tags": [[0, 1], [0]]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    source = DataSource(hub=str(tmp_path), format="labels")
    found = [r for r in read_records(source).records if isinstance(r, LabelledText)]
    assert [(r.text, r.labels, r.gold) for r in found] == [("a", ("pos",), True), ("b", (), False)]
