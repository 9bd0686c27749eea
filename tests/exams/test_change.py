"""The change exam: every score by hand with fake respondents; identity, caches and resumption with real ones."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.change import Change
from posttrain.data.records import Message
from posttrain.exams.change import change_task, kl_nats
from posttrain.exams.records import ProbeResult
from posttrain.exams.running import Cache, run_task
from posttrain.exams.sample_log import read_samples
from posttrain.exams.statistics import wilson
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.models.load import load_model
from tests.exams.fakes import Fake, examined
from tests.pico import FAMILIES

CHANGE = Change.model_validate(
    {
        "name": "capital",
        "target": [{"prompt": "t1", "answer": "Lyon", "subject": None}, {"prompt": "t2", "answer": ["Lyon", "Lugdunum"]}],
        "generality": {
            "rephrase": [{"prompt": "r1", "answer": "Lyon"}, {"prompt": "r2", "answer": "Lyon"}],
            "reverse": [{"prompt": "v1", "answer_contains": "France"}],
        },
        "locality": {
            "same_pattern": ["s1", "s2", "s3", "s4"],
            "unrelated": ["u1", [{"role": "user", "content": "u2"}]],
            "format": ["f1", "f2"],
            "refusal": ["x1", "x2"],
        },
    }
)  # fmt: skip
BEFORE = {
    "t1": "Paris", "t2": "Paris", "r1": "Paris", "r2": "Paris", "v1": "A city",
    "s1": "Rome", "s2": "Berlin", "s3": "Madrid", "s4": "Oslo", "u1": "4", "u2": "Blue",
    "f1": '{"a": "x"}', "f2": "x", "x1": "I can't help with that.", "x2": "Sure",
}  # fmt: skip
AFTER = {
    "t1": "Lyon.", "t2": "lugdunum", "r1": "It is Lyon", "r2": "Paris", "v1": "Lyon is the capital of France",
    "s1": "Rome.", "s2": "Lyon", "s3": "It is Lyon.", "s4": "Oslo", "u1": "4", "u2": "Red",
    "f1": '{"a":"X"}', "f2": "x", "x1": "Sorry, I won't help with it.", "x2": "Sure",
}  # fmt: skip
HALF = [[0.5, 0.5]]
TABLES = {"t1": HALF, "t2": HALF * 3, "u1": HALF}


def fakes() -> tuple[Fake, Fake]:
    chat = str((Message("user", "u2"),))
    before = Fake("before", BEFORE, tables=TABLES | {chat: HALF})
    after = Fake(
        "after",
        AFTER,
        likes={"Lyon": -1.0, "Paris": -2.0},
        tables={"t1": [[0.25, 0.75]], "t2": HALF * 3, "u1": HALF, chat: [[0.1, 0.2, 0.7]]},
        cut=["u2"],
    )
    return before, after


def test_every_score_by_hand() -> None:
    result = examined(*fakes(), CHANGE)
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    graded = ("kept", "same", "manner")
    assert {key: value for key, value in result.scores.items() if key.partition(".")[0] not in graded} == {
        "reliability": 1.0,
        "generality.rephrase": 0.5,
        "generality.reverse": 1.0,
        "locality.same_pattern": 0.5,
        "locality.unrelated": 0.5,
        "locality.format": 1.0,  # f2 was not JSON before: not counted
        "locality.refusal": 1.0,  # x2 was no refusal before: not counted
        "strict.same_pattern": 0.25,  # "Rome." is not "Rome"
        "strict.unrelated": 0.5,
        "strict.format": 0.0,  # f2 has the same text, and is not counted
        "strict.refusal": 0.0,
        "leak": 0.2,  # s2 and s3 of ten
        "likelihood.reliability": 1.0,
        "likelihood.rephrase": 1.0,
        "drift.target_kl": pytest.approx(kl / 4),  # one token of t1 against three of t2 that did not move
        "drift.unrelated_kl": 0.0,  # u2's vocabularies differ: left out
        "length.before": pytest.approx(sum(map(len, BEFORE.values())) / 15),
        "length.after": pytest.approx(sum(map(len, AFTER.values())) / 15),
        "length.cut": pytest.approx(1 / 15),
    }
    assert result.scores["same.same_pattern"] == 0.5  # s1 and s4 say the same, s2 and s3 another city
    assert result.scores["kept.same_pattern"] == 0.5
    assert 0.9 < result.scores["manner"] < 1
    assert result.outcomes == {
        "locality.same_pattern": (1, 0, 0, 1),
        "locality.unrelated": (1, 0),
        "locality.format": (1, None),
        "locality.refusal": (1, None),
    }
    assert result.n["locality.format"] == 1
    assert result.n["leak"] == 10
    assert result.n["drift.unrelated_kl"] == 1
    assert result.ci95["locality.same_pattern"] == wilson(2, 4)
    assert (
        "1 of 2 probes of locality.format are not counted: the answer before has no form: no JSON, list, table or code"
        in result.notes
    )
    assert "1 of 4 drift probes have no KL (no distributions, or other vocabularies)" in result.notes
    assert "1 of 15 answers after were cut at max_new_tokens" in result.notes


def test_an_answer_that_was_cut_is_not_said_to_have_no_form() -> None:
    _, after = fakes()
    result = examined(Fake("before", BEFORE | {"f1": '{"a": '}, cut=["f1"]), after, CHANGE)
    told = "1 of 2 probes of locality.format are not counted: the answer before"
    assert f"{told} was cut before it showed a form: raise max_new_tokens" in result.notes
    assert f"{told} has no form: no JSON, list, table or code" in result.notes


def test_exact_mode_takes_no_sentence() -> None:
    result = examined(*fakes(), CHANGE, mode="exact")
    assert result.scores["generality.rephrase"] == 0.0
    assert result.scores["leak"] == 0.2  # naming the new object is a leak in every mode


def test_everything_is_asked_in_one_call_and_before_only_once() -> None:
    before, after = fakes()
    cache: Cache = {}
    for _ in range(2):
        examined(before, after, CHANGE, cache=cache)
    assert [len(call) for call in before.asked] == [15]
    assert [len(call) for call in after.asked] == [15, 15]
    assert before.shown == 4


def test_an_unchanged_respondent_has_nothing_to_show_for() -> None:
    before, _ = fakes()
    scores = examined(before, before, CHANGE).scores
    assert scores["reliability"] == 0.0
    assert [v for k, v in scores.items() if k.startswith("locality.")] == [1.0] * 4
    assert [v for k, v in scores.items() if k.startswith("strict.")] == [1.0] * 4
    assert (scores["leak"], scores["drift.target_kl"], scores["drift.unrelated_kl"]) == (0.0, 0.0, 0.0)


def test_a_target_met_before_is_said_and_has_no_likelihood() -> None:
    before = Fake("knows", BEFORE | {"t1": "Lyon"})
    _, after = fakes()
    result = examined(before, after, CHANGE)
    assert "1 of 2 targets were met before the change already" in result.notes
    assert result.n["likelihood.reliability"] == 1
    assert result.samples[0].new_beats_old is None


def test_without_distributions_there_is_no_drift() -> None:
    _, after = fakes()
    result = examined(Fake("api", BEFORE), after, CHANGE)
    assert not [name for name in result.scores if name.startswith("drift.")]
    assert result.scores["reliability"] == 1.0


def test_the_order_of_samples_is_the_files_and_a_killed_exam_goes_on(tmp_path: Path) -> None:
    whole_path, path = tmp_path / "whole.jsonl", tmp_path / "samples.jsonl"
    task = change_task(CHANGE)
    before, after = fakes()
    whole = run_task(after, task, before=before, samples_path=whole_path)
    lines = whole_path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[i] for i in (3, 1, 2, 9, 5, 7, 11)) + lines[0][:30], encoding="utf-8")  # killed
    before, after = fakes()
    again = run_task(after, task, before=before, samples_path=path)
    assert [len(call) for call in after.asked] == [8]
    assert again.earlier == 7
    assert (again.samples, again.scores, again.notes) == (whole.samples, whole.scores, whole.notes)
    assert path.read_bytes() == whole_path.read_bytes()
    assert [s.group for s in again.samples] == [group for group, _, _ in CHANGE.probes()]
    assert read_samples(path, ProbeResult.from_json) == whole.samples


def test_an_exam_in_parts_asks_the_same() -> None:
    before, after = fakes()
    parts = run_task(after, change_task(CHANGE), before=before, chunk=4)
    assert [len(call) for call in after.asked] == [4, 4, 4, 3]
    whole = examined(*fakes(), CHANGE)
    assert (parts.samples, parts.scores) == (whole.samples, whole.scores)


def test_a_question_that_stands_twice_is_asked_once() -> None:
    data = CHANGE.model_dump()
    data["locality"]["same_pattern"] = ["s1", "s1"]
    before, after = fakes()
    result = examined(before, after, Change.model_validate(data))
    assert result.n["locality.same_pattern"] == 2
    assert len(after.asked[0]) == 12
    assert [s.index for s in result.samples if s.group == "locality.same_pattern"] == [0, 1]


def test_kl_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    q = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]).log()
    assert kl_nats(p, q) == pytest.approx(math.log(2) + math.log(2))
    assert kl_nats(p, p) == 0.0


REAL: dict[str, Any] = {
    "name": "real",
    "target": [{"prompt": "What is the capital of France?", "answer": "Lyon"}],
    "locality": {
        "same_pattern": ["What is the capital of Japan?", "日本的首都？"],
        "unrelated": ["誰寫了《哈姆雷特》？"],
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_model_against_itself(family: str, pico_path: Callable[[str], Path]) -> None:
    model = ModelRespondent(load_model(str(pico_path(family))))
    scores = examined(model, model, Change.model_validate(REAL), max_new_tokens=8).scores
    for name in ("locality.same_pattern", "strict.same_pattern", "locality.unrelated", "strict.unrelated"):
        assert scores[name] == 1.0
    assert scores["drift.target_kl"] == 0.0
    assert scores["drift.unrelated_kl"] == 0.0
    assert scores["leak"] == 0.0


def test_a_real_model_that_is_told_or_shaken_drifts(pico_path: Callable[[str], Path]) -> None:
    model, shaken = (ModelRespondent(load_model(str(pico_path("llama")))) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in shaken.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    change = Change.model_validate(REAL)
    told = examined(model, PromptedRespondent(model, "Lyon!"), change, max_new_tokens=8)
    moved = examined(model, shaken, change, max_new_tokens=8)
    assert 0 < told.scores["drift.target_kl"] < moved.scores["drift.target_kl"]
    assert moved.scores["locality.same_pattern"] < 1.0


def test_words_to_keep_that_were_never_said_are_named() -> None:
    """The probe is graded by nothing then, not even by the measure of content."""
    data: dict[str, Any] = {
        "name": "c",
        "target": [{"prompt": "t1", "answer": "Lyon"}],
        "locality": {
            "same_pattern": [{"prompt": "s1", "keeps": ["Rome", "Tolstoy"]}, {"prompt": "s4", "keeps": "Oslo"}],
            "neighbour": [{"prompt": "s2", "keeps": ["Bonn", "Mainz"]}],
        },
    }
    result = examined(*fakes(), Change.model_validate(data))
    wrong, right, both = result.samples[1:]
    assert (wrong.ok, wrong.kept, wrong.band) == (None, None, "")
    assert wrong.note == "'Tolstoy' is not in the answer before: check `keeps`"
    assert (right.ok, right.kept) == (True, 1.0)
    assert both.note == "'Bonn', 'Mainz' are not in the answer before: check `keeps`"
    assert (result.n["locality.same_pattern"], result.n["kept.same_pattern"], result.n["strict.same_pattern"]) == (
        1,
        1,
        1,
    )
    assert "locality.neighbour" not in result.scores
