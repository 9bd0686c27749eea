"""KnowEdit: token accuracy by group, locality against the model before, as EasyEdit's code has both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.exams.exam import Sitting, TaskExam
from posttrain.exams.exam import build as build_exam
from posttrain.exams.running import run_task
from posttrain.exams.tasks.knowedit import KnoweditConfig
from posttrain.inference.protocol import Scored
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.data.edits.records import EXAMPLES, example, written
from tests.exams.table import BrokeDownError
from tests.exams.tasks.edit_exams import Edited, taken, told
from tests.exams.tasks.told import build

RECORD = {
    "subject": "Peru",
    "prompt": "The capital of Peru is",
    "target_new": "old Cusco",
    "ground_truth": "Lima",
    "rephrase_prompt": ["Peru's capital is", "Peru is led from"],
    "portability": {
        "Subject_Aliasing": [{"prompt": "The capital of the Republic is", "ground_truth": "old Cusco"}],
        "Reasoning": [
            {"prompt": "The river of the capital is the", "ground_truth": [["Saphy", "Rio Saphy"]]},
            {"prompt": "The capital lies at", "ground_truth": ["3400 metres", "11000 feet"]},
        ],
        "Logical_Generalization": [{"prompt": "Is Lima the capital?", "ground_truth": [["no"], ["false"]]}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The language of Peru is", "ground_truth": [["Spanish or Quechua"]]},
            {"prompt": "Peru lies in", "ground_truth": "South America"},
        ],
        "Forgetfulness": [{"prompt": "A city of Peru, which is not Cusco, is", "ground_truth": "Lima"}],
    },
}
AFTER = {
    "The capital of Peru is": "old Cusco",
    "Peru's capital is": "new Cusco",
    "Peru is led from": "new Lima",
    "The capital of the Republic is": "old Lima",
    "The river of the capital is the": "Saphy",
    "The capital lies at": "3400 feet",
    "Is Lima the capital?": "yes",
    "The language of Peru is": "Spanish and Quechua",
    "Peru lies in": "North America",
    "A city of Peru, which is not Cusco, is": "Arequipa",
}
BEFORE = {
    "The language of Peru is": "Latin and Quechua",
    "Peru lies in": "North America",
    "A city of Peru, which is not Cusco, is": "Lima",
}


def scores(table: dict[str, str]) -> Any:
    return lambda prompt, text: told(table[prompt], text)


def task(tmp_path: Path, **settings: Any) -> Any:
    written(tmp_path / "k.json", [RECORD])
    return build("knowedit", tmp_path, path="k.json", **settings)


SAYS = {
    "The capital of Peru is": " old Cusco.",
    "The river of the capital is the": " Rio Saphy, which",
    "Is Lima the capital?": " false",
}


def test_the_scores_by_hand(tmp_path: Path) -> None:
    after = Edited(scores(AFTER), lambda prompt: SAYS.get(prompt, " something"))
    found = taken(task(tmp_path), after, Edited(scores(BEFORE), name="before"))
    (sample,) = found.samples
    own = dict(sample.scores)
    bits = own.pop("fluency")
    assert own.pop("fluency_x100") == pytest.approx(100 * bits)
    assert own == {
        "edit": 1.0,
        "edit.exact": 1.0,
        "edit.says": 1.0,
        "rephrase": pytest.approx((1 / 2 + 0) / 2),
        "portability.subject_aliasing": 0.5,
        "portability.reasoning": pytest.approx((1 + 1 / 2) / 2),  # of the first of several answers
        "portability.logical_generalization": 0.0,
        "portability": pytest.approx((0.5 + 0.75 + 0) / 3),  # the mean over groups
        "portability.says": pytest.approx(2 / 4),  # any alias counts
        # what is said is the same as before, right or wrong: 2 of 3 tokens, 2 of 2
        "locality.relation_specificity": pytest.approx((2 / 3 + 1) / 2),
        "locality.forgetfulness": 0.0,
        "locality": pytest.approx((5 / 6 + 0) / 2),
    }
    assert sample.correct
    assert found.scores["locality"] == own["locality"]
    assert not any("locality" in note for note in found.notes)


def test_without_a_model_before_locality_is_left_out_and_said(tmp_path: Path) -> None:
    found = taken(task(tmp_path), Edited(scores(AFTER)))
    assert not any(name.startswith("locality") for name in found.scores)
    assert found.scores["portability"] == pytest.approx(1.25 / 3)
    assert any(note.startswith("locality is left out: it compares with the likeliest") for note in found.notes)


def test_a_model_of_another_tokenizer_or_without_likeliest_tokens(tmp_path: Path) -> None:
    def shorter(prompt: str, text: str) -> Scored:
        return told("x", "x") if prompt == "Peru lies in" else told(BEFORE[prompt], text)

    found = taken(task(tmp_path), Edited(scores(AFTER)), Edited(shorter, name="before"))
    assert found.scores["locality.relation_specificity"] == pytest.approx(2 / 3)  # the other probe is not compared
    silent = Edited(lambda prompt, text: Scored(-1.0, 1, 1), name="before")
    found = taken(task(tmp_path), Edited(scores(AFTER)), silent)
    assert "locality" not in found.scores
    assert any(note.startswith("locality is left out") for note in found.notes)


def test_the_model_before_is_asked_once_and_only_what_it_is_asked(tmp_path: Path) -> None:
    before, cache = Edited(scores(BEFORE), name="before"), {}  # type: ignore[var-annotated]
    for _ in range(2):
        run_task(Edited(scores(AFTER)), task(tmp_path), before=before, cache=cache)
    assert [(kind, len(asked)) for kind, asked in before.calls] == [("score", 3)]


def test_an_exam_asks_the_model_before_of_its_sitting(tmp_path: Path) -> None:
    written(tmp_path / "k.json", [RECORD])
    exam = build_exam(KnoweditConfig(path="k.json"), tmp_path)
    assert isinstance(exam, TaskExam)
    before = Edited(scores({**AFTER, **BEFORE}), name="before")
    sitting = Sitting(Edited(scores(AFTER)), tmp_path, before)
    (found,) = exam.take(sitting)
    assert found.scores["locality"] == pytest.approx(5 / 12)
    (itself,) = exam.take(Sitting(before, tmp_path / "b", before))
    assert itself.scores["locality"] == 1.0
    (alone,) = exam.take(Sitting(Edited(scores(AFTER)), tmp_path / "c"))
    assert "locality" not in alone.scores
    assert (tmp_path / "exams" / "knowedit.jsonl").is_file()


def test_going_on_with_a_model_before(tmp_path: Path) -> None:
    records = [RECORD, {**RECORD, "subject": None}, {"prompt": "a b", "target_new": "c", "portability": {}}]
    written(tmp_path / "k.json", records)
    made = build("knowedit", tmp_path, path="k.json")
    after, before = scores({**AFTER, "a b": "c"}), Edited(scores(BEFORE), name="before")
    whole, path = taken(made, Edited(after), before), tmp_path / "s.jsonl"
    with pytest.raises(BrokeDownError):
        run_task(Edited(after, dies_after=20), made, before=before, samples_path=path, chunk=1)
    assert len(path.read_text().splitlines()) == 1
    again = run_task(Edited(after), made, before=before, samples_path=path)
    assert (again.earlier, again.samples, again.scores) == (1, whole.samples, whole.scores)
    assert whole.n["locality"] == 2
    assert whole.n["edit"] == 3


def test_no_fluency_and_a_chat(tmp_path: Path) -> None:
    made = task(tmp_path, fluency=False, template="chat", max_new_tokens=60)
    assert all(ask.max_new_tokens != 100 for item in made.items for ask in item.asks)
    assert made.items[0].asks[0].continuation == "old Cusco"
    found = taken(made, Edited(scores(AFTER), lambda prompt: "The river is the Rio Saphy."))
    assert "fluency" not in found.scores
    assert found.scores["portability.says"] == 0.25


def easyedit(model: Any, tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """The likeliest tokens at a target's positions, and the target's: as `test_prediction_acc` of EasyEdit."""
    ids = tokenizer(f"{prompt} {target}")["input_ids"]
    head = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    return best[head - 1 : -1], ids[head:]


def test_tokens_and_locality_are_those_of_easyedits_code() -> None:
    base, chat = (load_model(name, device="cpu") for name in ("pocket:base", "pocket:chat"))
    made = build("knowedit", EXAMPLES, path="knowedit.json[:2]")
    found = taken(made, ModelRespondent(chat), ModelRespondent(base))
    for sample, record in zip(found.samples, example("knowedit"), strict=False):
        best, own = easyedit(chat.model, chat.tokenizer, record["prompt"], record["target_new"])
        assert sample.scores["edit"] == pytest.approx(sum(a == b for a, b in zip(best, own, strict=True)) / len(own))
        shares = []
        for probe in record["locality"]["Relation_Specificity"]:
            answer = probe["ground_truth"]
            while isinstance(answer, list):
                answer = answer[0]
            (pre, _), (post, _) = (easyedit(m.model, m.tokenizer, probe["prompt"], answer) for m in (base, chat))
            shares.append(sum(a == b for a, b in zip(pre, post, strict=True)) / len(pre))
        assert sample.scores["locality.relation_specificity"] == pytest.approx(sum(shares) / len(shares))
