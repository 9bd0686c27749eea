"""RippleEdits: the fact, its subject and its target, which the file has only in sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.edits.files import read_edit_set
from posttrain.data.edits.ripple_edits import RippleEdit
from tests.data.edits.records import example, written


def query(prompt: str, *answers: str, subject: str = "Q1", relation: str = "MOTHER") -> dict[str, Any]:
    listed = [{"value": one, "aliases": []} for one in answers]
    return {"prompt": prompt, "answers": listed, "subject_id": subject, "relation": relation}


def record(
    prompt: str, former: str | None = None, *, aliasing: str = "", others: tuple[str, ...] = (), **edit: Any
) -> dict[str, Any]:
    fact = {"prompt": prompt, "subject_id": "Q1", "relation": "FATHER", **edit}
    if former is not None:
        fact["original_fact"] = {"prompt": former}
    tests = [{"test_queries": [query("The father of alias is", aliasing)], "condition_queries": []}] if aliasing else []
    same = [{"test_queries": [query(one, "x1")], "condition_queries": []} for one in others]
    return {"edit": fact, "Subject_Aliasing": tests, "Relation_Specificity": same}


def edit(tmp_path: Path, one: dict[str, Any]) -> RippleEdit:
    (found,) = read_edit_set(written(tmp_path / "r.json", [one])).records
    assert isinstance(found.edit, RippleEdit)
    return found.edit


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        # the former fact shows where the target begins
        (record("The name of the father of Al is Bo.", "The name of the father of Al is Cy."), ("The name of the father of Al is", "Bo")),
        # both targets begin alike, and one has a verb
        (record("The alma mater of Al is University of A.", "The alma mater of Al is University of B."), ("The alma mater of Al is", "University of A")),
        (record("The author of Al is Love is Blind.", "The author of Al is Dov."), ("The author of Al is", "Love is Blind")),
        # a template with two verbs
        (record("The name of the country which Al is associated with is Peru.", "The name of the country which Al is associated with is Chad."), ("The name of the country which Al is associated with is", "Peru")),
        # a new fact (RECENT) has no former one: the alias test has its target, otherwise the last verb is taken
        (record("The author of Al is Love is Blind.", aliasing="Love is Blind"), ("The author of Al is", "Love is Blind")),
        (record("The names of the siblings of Al are Bo."), ("The names of the siblings of Al are", "Bo")),
        (record("Al follows Bo."), ("Al follows", "Bo")),
        (record("Al is followed by Bo Is."), ("Al is followed by", "Bo Is")),
        (record("The place of death of Al is  St. Louis."), ("The place of death of Al is", "St. Louis")),
        # a former fact that is the same
        (record("The gender of Al is male.", "The gender of Al is male."), ("The gender of Al is", "male")),
        # some copies have the target itself
        (record("The author of Al is This is It.", target="This is It"), ("The author of Al is", "This is It")),
    ],
)  # fmt: skip
def test_the_prompt_and_the_target(tmp_path: Path, one: dict[str, Any], expected: tuple[str, str]) -> None:
    found = edit(tmp_path, one)
    assert (found.prompt, found.new) == expected


@pytest.mark.parametrize(
    ("others", "given", "expected"),
    [
        (("The gender of Ann Lee is", "The name of the mother of Ann Lee is"), {}, "Ann Lee"),
        (("The number of children Ann Lee has is",), {}, "Ann Lee"),
        (("The gender of Bob is",), {}, None),
        ((), {}, None),
        ((), {"subject": "Ann Lee"}, "Ann Lee"),
        (("The gender of Ann Lee is",), {"subject": "Zoe"}, "Ann Lee"),  # it does not stand in the sentence
    ],
)
def test_the_subject(tmp_path: Path, others: tuple[str, ...], given: dict[str, str], expected: str | None) -> None:
    one = record("The name of the father of Ann Lee is Bo.", others=others, **given)
    assert edit(tmp_path, one).subject == expected


def test_queries_about_others_say_nothing_of_the_subject(tmp_path: Path) -> None:
    one = record("The name of the father of Ann Lee is Bo.", others=("The name of the father of Bo is",))
    one["Relation_Specificity"][0]["test_queries"][0]["subject_id"] = "Q2"
    assert edit(tmp_path, one).subject is None


def test_tests_conditions_and_aliases(tmp_path: Path) -> None:
    found = edit(tmp_path, example("ripple_edits")[0])
    assert (found.prompt, found.subject, found.new) == ("The name of the capital city of Kenya is", "Kenya", "Mombasa")
    assert {name: len(tests) for name, tests in found.tests.items()} == {
        "Logical_Generalization": 1,
        "Compositionality_I": 1,
        "Compositionality_II": 1,
        "Subject_Aliasing": 1,
        "Forgetfulness": 1,
        "Relation_Specificity": 2,
    }
    (two,) = found.tests["Compositionality_II"]
    assert (two.passes, len(two.queries), len(two.conditions)) == ("AND", 2, 1)
    assert two.queries[0].answers == (("Mombasa", "Mvita"),)


def test_answers_of_one_character_are_left_out_unless_they_are_digits(tmp_path: Path) -> None:
    one = record("The number of children Al has is 4.", others=("x is", "y is", "z is"))
    for test, answer in zip(one["Relation_Specificity"], ("K", "7", ""), strict=True):
        test["test_queries"][0]["answers"] = [{"value": answer, "aliases": ["seven"] if answer == "7" else []}]
    found = read_edit_set(written(tmp_path / "r.json", [one]))
    (record_,) = found.records
    assert isinstance(record_.edit, RippleEdit)
    assert [test.queries[0].answers for test in record_.edit.tests["Relation_Specificity"]] == [(("7", "seven"),)]
    assert record_.edit.new == "4"
    assert found.notes == ("left out: 2 of the probes (no answer)",)


def test_the_misspelt_key_of_the_readme_and_an_empty_target(tmp_path: Path) -> None:
    one = record("The gender of Ann Lee is male.", others=("The mother of Ann Lee is",))
    one["Relation_Specifity"] = one.pop("Relation_Specificity")
    assert list(edit(tmp_path, one).tests) == ["Relation_Specificity"]
    found = read_edit_set(written(tmp_path / "r.json", [one, record("The gender of Al is .")]))
    assert found.notes == ("left out: 1 of 2 records (an empty target)",)


def test_as_a_change_an_or_test_asks_its_first_query(tmp_path: Path) -> None:
    one = example("ripple_edits")[0]
    hops = edit(tmp_path, one).as_change()["generality"]["hop"]
    assert len(hops) == 4  # the AND test has two
    one["Compositionality_II"][0]["test_condition"] = "OR"
    assert len(edit(tmp_path, one).as_change()["generality"]["hop"]) == 3
