"""Changes of change files and of editing data sets, together."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.data.changes import load_changes
from posttrain.errors import ConfigError, MissingError
from tests.config.test_change import GOOD, write
from tests.data.edits.records import EXAMPLES, FORMS, example, lines, written


def test_many_files_one_error(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "a.yaml")
    write(tmp_path, GOOD, "b.yaml")
    write(tmp_path, GOOD.replace("prompt:", "promt:"), "c.yaml")
    with pytest.raises(ConfigError) as caught:
        load_changes("*.yaml", tmp_path)
    text = str(caught.value)
    assert f"{tmp_path / 'b.yaml'}: the name 'tallest' is also used by {tmp_path / 'a.yaml'}" in text
    assert f"{tmp_path / 'c.yaml'}:3: unknown key 'promt'" in text


def test_no_file_matches(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"s\.yaml: no file matches 'x/\*\.yaml'"):
        load_changes("x/*.yaml", tmp_path, location="s.yaml")
    with pytest.raises(ConfigError, match=r"s\.yaml: '\[3\]' is no slice of records"):
        load_changes(["c.json[3]", "x/*.yaml"], tmp_path, location="s.yaml")


def test_a_change_of_each_record() -> None:
    (change,) = load_changes("counterfact.json[:1]", EXAMPLES)
    assert change.name == "counterfact-00000"
    assert change.path == f"{EXAMPLES / 'counterfact.json'}[0:1]"
    (target,) = change.target
    assert (target.prompt, target.answer, target.subject) == ("Kenya lies in", ("Asia",), "Kenya")
    assert [one.prompt for one in change.generality.rephrase] == example("counterfact")[0]["paraphrase_prompts"]
    assert {one.answer for one in change.generality.rephrase} == {("Asia",)}
    assert [one.prompt for one in change.locality.neighbour] == example("counterfact")[0]["neighborhood_prompts"]
    assert [one.prompt for one in change.locality.same_pattern] == example("counterfact")[0]["attribute_prompts"]
    assert change.location_of("locality.neighbour", 1) == (
        f"{change.path} (change counterfact-00000, locality.neighbour 2)"
    )


@pytest.mark.parametrize("form", [*FORMS, "edits"])
def test_every_form_makes_changes(form: str) -> None:
    file = f"{form}.json{'l' if form == 'edits' else ''}"
    changes = load_changes([file], EXAMPLES)
    assert len({change.name for change in changes}) == len(changes) >= 2
    for change in changes:
        groups = {group for group, _, _ in change.probes()}
        assert {"reliability"} < groups
        assert any(group.startswith("locality.") for group in groups)
    again = load_changes(f"{file}[1:2]", EXAMPLES)
    assert again == changes[1:2]  # the same name and probes, whatever slice is read


def test_lists_of_aliases_are_accepted_answers() -> None:
    first, _, third = load_changes("knowedit.json", EXAMPLES)
    assert [one.answer for one in first.generality.hop] == [
        ("Perfume River", "Huong River"),
        ("no", "incorrect", "false"),
    ]
    assert [one.answer for one in third.generality.rephrase] == [("雪山",), ("雪山", "Xueshan")]


def test_rows_of_plain_edits(tmp_path: Path) -> None:
    named, second, third = load_changes("edits.jsonl", EXAMPLES)
    assert (named.name, second.name, third.name) == ("senegal", "edits-00001", "edits-00002")
    assert second.path.endswith("edits.jsonl:2")
    assert [one.answer for one in named.generality.rephrase] == [("Thies",), ("Thies",)]
    assert len(named.locality.unrelated) == 2
    assert (len(second.locality.neighbour), len(second.locality.unrelated)) == (1, 1)
    assert third.target[0].answer == ("庫斯科", "庫斯科市")
    assert third.generality.rephrase[0].answer == ("Cusco",)
    good = {"prompt": "The capital of Peru is", "answer": "Cusco"}
    lines(tmp_path / "e.jsonl", {**good, "name": "a b"}, {**good, "name": "c"}, {**good, "name": "c"})
    with pytest.raises(ConfigError, match=r"e\.jsonl:1: name: a name has no spaces"):
        load_changes("e.jsonl", tmp_path)
    with pytest.raises(ConfigError, match=r"e\.jsonl:3: the name 'c' is also used by .*e\.jsonl:2"):
        load_changes("e.jsonl[1:]", tmp_path)
    lines(tmp_path / "k.jsonl", {**good, "locality": {"neighbor": ["a"]}}, {**good, "rephrase": [{"prompt": "a"}]})
    with pytest.raises(ConfigError) as caught:
        load_changes("k.jsonl", tmp_path)
    assert "k.jsonl:1: unknown key 'neighbor'; did you mean 'neighbour'?" in str(caught.value)
    assert "k.jsonl:2: generality.rephrase.0: needs 'answer' or 'answer_contains'" in str(caught.value)


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_rows_of_a_table(ending: str, separator: str, tmp_path: Path) -> None:
    table = [
        ["prompt", "subject", "answer", "name", "rephrase"],
        ["The capital of Peru is", "Peru", "Cusco", "", ""],
        ["法國的首都是哪裡？", "法國", "羅馬", "france", "法國的首都？"],
        ["Who is it?", "", "7", "", ""],
    ]
    path = tmp_path / f"e.{ending}"
    path.write_text("".join(f"{separator.join(row)}\n" for row in table), encoding="utf-8")
    first, france, third = load_changes(str(path), tmp_path)
    assert (first.name, france.name, third.name) == ("e-00000", "france", "e-00002")
    assert (first.target[0].prompt, first.target[0].subject, first.target[0].answer) == (
        *("The capital of Peru is", "Peru", ("Cusco",)),
    )
    assert [one.answer for one in france.generality.rephrase] == [("羅馬",)]
    assert (third.target[0].subject, third.target[0].answer) == (None, ("7",))
    assert first.path == f"{path}:2"
    assert load_changes(f"{path}[1:2]", tmp_path) == [france]
    path.write_text(f"question{separator}subject\nWho?{separator}it\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"e\.{ending} .*no editing data set has the fields 'question'"):
        load_changes(str(path), tmp_path)
    path.write_text(f"prompt{separator}subject{separator}answer\nWho?{separator}it{separator}me\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"e\.{ending}:2: the subject 'it' does not stand in the prompt"):
        load_changes(str(path), tmp_path)


def test_rows_of_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": "The capital of Peru is", "subject": "Peru", "answer": "Cusco"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "e.parquet")
    (change,) = load_changes("e.parquet", tmp_path)
    assert (change.name, change.target[0].subject, change.target[0].answer) == ("e-00000", "Peru", ("Cusco",))


def test_files_of_all_kinds_together(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "a.yaml")
    written(tmp_path / "b.json", example("zsre"))
    (tmp_path / "c.json").write_text('{"name": "c", "target": [{"prompt": "a?", "answer": "b"}]}')  # YAML, too
    found = load_changes(["*.yaml", "b.json[1:]", "b.json[:2]", "c.json"], tmp_path)
    assert [change.name for change in found] == ["tallest", "b-00001", "b-00002", "b-00000", "c"]
    written(tmp_path / "d.json", [{"a": 1}])
    written(tmp_path / "e.json", [{**example("zsre")[0], "src": ""}])
    with pytest.raises(ConfigError) as caught:
        load_changes(["d.json", "e.json", "a.yaml"], tmp_path)
    assert "d.json (its first record): no editing data set has the fields 'a'" in str(caught.value)
    assert "e.json[0:1]: 'src' is empty" in str(caught.value)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    records = example("counterfact")[:1]
    records[0]["neighborhood_prompts"] += ["Kenya lies in"]
    written(tmp_path / "cf.json", records)
    empty = [*example("knowedit")[:2], {**example("knowedit")[0], "target_new": ""}]
    written(tmp_path / "k.json", empty)
    told: list[str] = []
    changes = load_changes(["cf.json", "k.json"], tmp_path, say=told.append)
    assert len(changes[0].locality.neighbour) == 3
    assert told == [
        "cf.json: left out: 1 of the locality probes (they ask what their target asks)",
        "k.json: left out: 1 of 3 records (an empty target)",
    ]
