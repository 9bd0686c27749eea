"""Which data set a file is, slices, and what is said of wrong records."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.edits.counterfact import CounterFact
from posttrain.data.edits.files import Part, read_edit_set, split_part
from posttrain.data.edits.zsre import ZsRE
from posttrain.errors import DataError, MissingError
from tests.data.edits.records import EXAMPLES, FORMS, example, lines, written


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_is_known_by_its_fields(form: str, tmp_path: Path) -> None:
    path = written(tmp_path / "whatever.json", example(form))
    found = read_edit_set(path)
    assert found.form == form
    assert [one.name for one in found.records] == [f"whatever-{i:05d}" for i in range(len(example(form)))]
    assert found.records[1].location == f"{path}[1:2]"
    assert found.notes == ()


def test_plain_edits_are_known_too(tmp_path: Path) -> None:
    found = read_edit_set(EXAMPLES / "edits.jsonl")
    assert (found.form, len(found.records)) == ("edits", 3)
    assert found.records[1].location.endswith("edits.jsonl:2")
    rows = [{"prompt": "The capital of Peru is", "subject": "Peru", "target_new": "Cusco"}]
    assert read_edit_set(written(tmp_path / "rows.json", rows)).form == "edits"


@pytest.mark.parametrize(
    ("path", "file", "part"),
    [
        ("counterfact.json", "counterfact.json", Part()),
        ("counterfact.json[:200]", "counterfact.json", Part(None, 200)),
        ("a/b.jsonl[100:200]", "a/b.jsonl", Part(100, 200)),
        ("x.json.gz[5:]", "x.json.gz", Part(5, None)),
        ("X.JSON[:]", "X.JSON", Part()),
        ("edits.csv[:20]", "edits.csv", Part(None, 20)),
        ("edits.parquet[3:]", "edits.parquet", Part(3, None)),
        ("changes/[ab].yaml", "changes/[ab].yaml", Part()),
        ("data/[ab].json", "data/[ab].json", Part()),
        ("data/[ab].json[ 1 : 2 ]", "data/[ab].json", Part(1, 2)),
    ],
)
def test_slices(path: str, file: str, part: Part) -> None:
    assert split_part(path) == (file, part)


@pytest.mark.parametrize("path", ["c.json[5]", "c.json[-5:]", "c.json[a:b]", "c.jsonl[]", "c.json[1:2:3]"])
def test_what_is_no_slice(path: str) -> None:
    with pytest.raises(DataError, match=r"is no slice of records; a slice such as \[:200\]"):
        split_part(path)


def test_a_slice_reads_these_records_only(tmp_path: Path) -> None:
    records = example("counterfact")
    records[0] = {"requested_rewrite": 3}  # what is not in the slice is not looked at, but for the first one's fields
    path = written(tmp_path / "cf.json", records)
    found = read_edit_set(path, Part(1, 3))
    assert [one.number for one in found.records] == [1, 2]
    assert [one.name for one in found.records] == ["cf-00001", "cf-00002"]
    assert len(read_edit_set(path, Part(2, 100)).records) == 2
    with pytest.raises(DataError, match=r"cf\.json\[9:12\]: no record is in this slice: the file has 4 records"):
        read_edit_set(path, Part(9, 12))


def test_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "cf.json.gz"
    path.write_bytes(gzip.compress(json.dumps(example("counterfact")).encode()))
    assert read_edit_set(path).records[3].name == "cf-00003"


def test_names_are_fit_for_folders(tmp_path: Path) -> None:
    path = written(tmp_path / "my data (new) 臺灣.v2.json", example("zsre"))
    assert read_edit_set(path).records[0].name == "my_data_new_臺灣.v2-00000"
    long = written(tmp_path / f"{'x' * 90}.json", example("zsre"))
    assert read_edit_set(long).records[0].name == f"{'x' * 60}-00000"


def test_the_fields_of_counterfact() -> None:
    edit = read_edit_set(EXAMPLES / "counterfact.json").records[3].edit
    assert isinstance(edit, CounterFact)
    assert edit[:6] == ("越南的首都是", "越南", "順化", "河內", "Q36217", "P36")
    assert edit.paraphrases == ("昨天下了雨。越南的首都城市是", "他喝了一杯茶。越南的政府設在")
    assert (len(edit.neighbours), len(edit.attributes), len(edit.generation)) == (2, 1, 2)


def test_the_fields_of_zsre(tmp_path: Path) -> None:
    first, second, third = (one.edit for one in read_edit_set(EXAMPLES / "zsre.json").records)
    assert isinstance(first, ZsRE)
    assert first[:3] == ("What is the capital of Kenya?", "Kenya", ("Nairobi",))
    assert first.unrelated == "nq question: who wrote the book hamlet?"  # the file's question has no mark
    assert isinstance(second, ZsRE)
    assert second.answers == ("Brazilian real", "real")
    assert isinstance(third, ZsRE)
    assert third.unrelated == "法國的首都是哪裡？"
    other = {**example("zsre")[0], "subject": "Uganda"}
    (record,) = read_edit_set(written(tmp_path / "z.json", [other])).records
    assert isinstance(record.edit, ZsRE)
    assert record.edit.subject is None  # it does not stand in the question


Broken = Callable[[dict[str, Any]], object]
WRONG: list[tuple[str, Broken, str]] = [
    ("counterfact", lambda r: r["requested_rewrite"].pop("subject"), "'requested_rewrite.subject' is missing"),
    ("counterfact", lambda r: r["requested_rewrite"]["target_true"].update(str=" "), "target_true.str' is empty"),
    ("counterfact", lambda r: r["requested_rewrite"].update(target_new="Asia"), "must be an object, got a string"),
    ("counterfact", lambda r: r["requested_rewrite"].update(prompt="It is"), "must have {} once"),
    ("counterfact", lambda r: r.update(requested_rewrite=[]), "'requested_rewrite' must be an object, got a list"),
    ("counterfact", lambda r: r.update(neighborhood_prompts=["a", {}]), "'neighborhood_prompts' must be a text or a"),
    ("counterfact", lambda r: r.update(paraphrase_prompts=["a", ""]), "'paraphrase_prompts' has an empty text"),
    ("zsre", lambda r: r.update(answers=[]), "'answers' has no answer"),
    ("zsre", lambda r: r.pop("loc_ans"), "'loc_ans' is missing"),
    ("zsre", lambda r: r.update(loc=["a"]), "'loc' must be a text, got a list"),
    ("knowedit", lambda r: r.pop("target_new"), "'target_new' is missing"),
    ("knowedit", lambda r: r.update(locality=["a"]), "'locality' must be an object, got a list"),
    ("knowedit", lambda r: r["locality"].update(Neighbours=[]), "'locality' has the unknown group 'Neighbours'"),
    ("knowedit", lambda r: r["portability"].update(Reasoning=["a"]), "'portability.Reasoning[0]' must be an object"),
    ("knowedit", lambda r: r["portability"].update(Reasoning=[{"ground_truth": "a"}]), "Reasoning[0].prompt' is miss"),
    (
        "knowedit",
        lambda r: r["portability"].update(Reasoning=[{"prompt": "a", "ground_truth": {"b": 1}}]),
        "'portability.Reasoning[0].ground_truth' must be a text or a list of texts, got an object",
    ),
    ("ripple_edits", lambda r: r["edit"].pop("prompt"), "'edit.prompt' is missing"),
    ("ripple_edits", lambda r: r["edit"].update(prompt="Nothing here."), "cannot be cut into a prompt and its answer"),
    ("ripple_edits", lambda r: r.update(Forgetfulness=3), "'Forgetfulness' must be a list of objects, got a number"),
    (
        "ripple_edits",
        lambda r: r["Relation_Specificity"][0].update(test_condition="XOR"),
        "'Relation_Specificity[0].test_condition' must be OR or AND, got 'XOR'",
    ),
]


@pytest.mark.parametrize(("form", "broken", "expected"), WRONG)
def test_a_wrong_record_is_named_with_its_file(form: str, broken: Broken, expected: str, tmp_path: Path) -> None:
    records = [*example(form)[:1], *example(form)[:1]]
    broken(records[1])
    path = written(tmp_path / "d.json", records)
    with pytest.raises(DataError) as caught:
        read_edit_set(path)
    assert str(caught.value).startswith(f"{path}[1:2]: ")
    assert expected in str(caught.value)


def test_all_wrong_records_are_named_together(tmp_path: Path) -> None:
    records: list[Any] = [*example("zsre"), 7, example("counterfact")[0]]
    records[1].update(answers=5.5, loc=None)
    with pytest.raises(DataError) as caught:
        read_edit_set(written(tmp_path / "z.json", records))
    said = [str(one).removeprefix(f"{tmp_path}/") for one in caught.value.problems]
    assert said[0].startswith("z.json[1:2]: 'loc' is missing; ")
    assert said[1].startswith("z.json[3:4]: an object is expected, got a number")
    assert "the record is not of zsRE, as the first one: it has 'case_id'" in said[2]
    assert said[2].endswith("it is CounterFact")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[{"question": "a", "answer": "b"}]',
            "no editing data set has the fields 'question', 'answer'; CounterFact: ",
        ),
        ("[3]", "an object is expected, got a number"),
        ("[]", "the file is empty: no records"),
        ("", "the file is empty: no records"),
        ('[{"a": 1}', "not valid JSON"),
    ],
)
def test_a_file_that_is_none(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_edit_set(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_file_that_is_another_one() -> None:
    with pytest.raises(DataError, match=r"zsre\.json \(its first record\): this is not CounterFact: .*; it is zsRE"):
        read_edit_set(EXAMPLES / "zsre.json", form="counterfact")
    with pytest.raises(MissingError, match="no such file"):
        read_edit_set(EXAMPLES / "zsree.json")


def test_rows_of_plain_edits_are_named_by_their_line(tmp_path: Path) -> None:
    good = {"prompt": "The capital of Peru is", "subject": "Peru", "answer": "Cusco"}
    path = lines(
        tmp_path / "e.jsonl",
        good,
        {**good, "subject": "Chile"},
        {"prompt": "a", "answr": "b"},
        "",
        {**good, "rephrse": ["x"]},
        {**good, "target_new": "Lima"},
        {**good, "locality": "x"},
        {**good, "locality": {"unrelated": "x"}},
        {**good, "answer": ["Cusco", ""]},
        "not JSON",
    )
    with pytest.raises(DataError) as caught:
        read_edit_set(path)
    said = [str(one).removeprefix(f"{path}:") for one in caught.value.problems]
    assert [one.partition(":")[0] for one in said] == [
        "2",
        "3",
        "5",
        "6",
        "7",
        "8",
        "9",
        "10",
        "8 of 9 rows cannot be used",
    ]
    assert "the subject 'Chile' does not stand in the prompt" in said[0]
    assert "unknown key 'answr'; did you mean 'answer'?" in said[1]
    assert "unknown key 'rephrse'; did you mean 'rephrase'?" in said[2]
    assert "keep one of them" in said[3]
    assert "'locality' must be a list of prompts" in said[4]
    assert "'answer' has an empty text" in said[6]
