"""RippleEdits: tests of six criteria, OR and AND, and conditions that the model before must meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.exams.running import run_task
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.data.edits.records import EXAMPLES, example, written
from tests.exams.table import BrokeDownError
from tests.exams.tasks.edit_exams import Edited, taken
from tests.exams.tasks.told import build

AFTER = {
    "The name of the capital city of Kenya is": " Mombasa, by the sea",
    "The name of the currency in Kenya is": " the shilling",
    "The name of the continent which Kenya is part of is": " Asia",
    "The name of the country which Mombasa is the capital of is": " the Republic of Kenya",
    "The name of the capital city of the Republic of Kenya is": " Mvita",
    "The name of the continent which the capital city of Kenya is part of is": " Africa",
    "The name of the capital city of the country whose currency is the Kenyan shilling is": " Mombasa",
    "The capital of the country where people pay with the Kenyan shilling is": " Nairobi",
    "The name of a large city of Kenya, which is not Mombasa, is": " Nairobi City",
    "The official language of Peru is": " Spanish",
}
BEFORE = {
    "The name of the currency in Kenya is": " the Kenyan shilling",
    "The name of the continent which Kenya is part of is": " Africa",
    "The name of the capital city of the Republic of Kenya is": " Nairobi",
    "The name of the continent which Mombasa is part of is": " Asia",
    "The official language of Peru is": " Quechua",
    "The name of the continent which Peru is part of is": " South America",
}


def saying(table: dict[str, str], name: str = "edited", dies_after: int | None = None) -> Edited:
    return Edited(says=lambda prompt: table.get(prompt, ""), name=name, dies_after=dies_after)


def task(path: Path = EXAMPLES, file: str = "ripple_edits.json", **settings: Any) -> Any:
    return build("ripple_edits", path, path=file, **settings)


def test_the_scores_by_hand() -> None:
    found = taken(task(), saying(AFTER), saying(BEFORE, "before"))
    kenya, peru = found.samples
    assert kenya.scores == {
        "edit": 1.0,
        "relation_specificity": 0.5,  # the currency by an alias; the continent is wrong now
        "logical_generalization": 1.0,  # no condition
        "subject_aliasing": 1.0,  # by an alias
        "compositionality_ii": 0.0,  # AND: one of two queries is wrong
        "preservation": 1.0,
        # compositionality_i passes, but the model before did not know where Mombasa lies
        "all.relation_specificity": 0.5,
        "all.logical_generalization": 1.0,
        "all.subject_aliasing": 1.0,
        "all.compositionality_i": 1.0,
        "all.compositionality_ii": 0.0,
        "all.preservation": 1.0,
        "conditions": pytest.approx(6 / 7),
    }
    assert peru.scores == {
        "edit": 0.0,
        "relation_specificity": 0.0,  # the language is right now, and was not known before: it does not count
        "subject_aliasing": 0.0,
        "all.relation_specificity": 0.5,
        "all.subject_aliasing": 0.0,
        "conditions": pytest.approx(2 / 3),
    }
    scores = found.scores
    assert (scores["relation_specificity"], scores["subject_aliasing"]) == (0.25, 0.5)
    assert scores["mean"] == pytest.approx((1 + 0 + 0.5 + 1 + 0.25) / 5)  # five criteria have tests that count
    assert scores["all.mean"] == pytest.approx((1 + 1 + 0 + 0.5 + 1 + 0.5) / 6)
    assert scores["edited.relation_specificity"] == 0.5  # of the record whose edit succeeded alone
    assert scores["edited.mean"] == pytest.approx((1 + 0 + 1 + 1 + 0.5) / 5)
    assert scores["edit"] == 0.5
    assert next(iter(scores)) == "mean"
    assert "no test of compositionality_i has its conditions met by the model before" in found.notes


def test_without_a_model_before_conditions_are_not_checked() -> None:
    found = taken(task(), saying(AFTER))
    assert {name.partition(".")[0] for name in found.scores} == {"edit", "all"}
    assert found.scores["all.compositionality_i"] == 1.0
    assert any(note.startswith("test conditions are not checked") for note in found.notes)


def test_or_needs_one_query_and_every_answer_is_needed(tmp_path: Path) -> None:
    records = example("ripple_edits")[:1]
    records[0]["Compositionality_II"][0]["test_condition"] = "OR"
    query = records[0]["Forgetfulness"][0]["test_queries"][0]
    query["answers"].append({"value": "Kisumu", "aliases": []})
    written(tmp_path / "r.json", records)
    found = taken(task(tmp_path, "r.json"), saying(AFTER), saying(BEFORE, "before"))
    assert found.scores["compositionality_ii"] == 1.0
    assert found.scores["preservation"] == 0.0
    both = {**AFTER, query["prompt"]: " Kisumu and Nairobi"}
    assert taken(task(tmp_path, "r.json"), saying(both), saying(BEFORE, "before")).scores["preservation"] == 1.0


def test_no_edit_succeeded() -> None:
    found = taken(task(), saying({}), saying(BEFORE, "before"))
    assert found.scores["edit"] == 0.0
    assert not any(name.startswith("edited.") for name in found.scores)


def test_the_model_before_is_asked_the_conditions_alone_and_once() -> None:
    before, cache = saying(BEFORE, "before"), {}  # type: ignore[var-annotated]
    for _ in range(2):
        run_task(saying(AFTER), task(), before=before, cache=cache)
    asked = [prompt.text for kind, prompts in before.calls for prompt in prompts if kind == "say"]  # type: ignore[attr-defined]
    assert sorted(asked) == sorted(BEFORE)


def test_going_on_slices_and_a_chat(tmp_path: Path) -> None:
    whole, path = taken(task(), saying(AFTER), saying(BEFORE, "before")), tmp_path / "s.jsonl"
    with pytest.raises(BrokeDownError):
        run_task(saying(AFTER, dies_after=11), task(), before=saying(BEFORE, "before"), samples_path=path, chunk=1)
    assert len(path.read_text().splitlines()) == 1
    again = run_task(saying(AFTER), task(), before=saying(BEFORE, "before"), samples_path=path)
    assert (again.earlier, again.samples, again.scores) == (1, whole.samples, whole.scores)
    one = task(file="ripple_edits.json[1:]", template="chat")
    assert [item.id for item in one.items] == ["ripple_edits-00001"]
    assert one.items[0].asks[0].prompt == "The name of the head of state of Peru is"
    assert one.items[0].asks[0].max_new_tokens == 30


def test_a_model_that_knows_keeps_what_it_knows() -> None:
    base = ModelRespondent(load_model("pocket:base", device="cpu"))
    found = taken(task(), base, base)
    assert found.scores["relation_specificity"] == 1.0
    assert found.scores["edit"] == 0.0
    assert found.scores["conditions"] > 0.8
