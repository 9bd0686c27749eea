from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.change import Change
from posttrain.inference.respondents import PromptedRespondent
from posttrain.studies.candidates import END, CellContext
from posttrain.studies.methods.prompt import PromptMethodConfig, language_of, prompt, wording_of
from tests.studies.methods.test_train import bench_of, context_of


def change(*targets: tuple[str, str], **fields: Any) -> Change:
    return Change.model_validate({"name": "x", "target": [{"prompt": q, "answer": a} for q, a in targets], **fields})


@pytest.mark.parametrize(("text", "language"), [("Who?", "en"), ("誰?", "zh"), ("", "en"), ("Café — naïve?", "en")])
def test_language(text: str, language: str) -> None:
    assert language_of(text) == language


def test_each_target_is_told_in_its_language() -> None:
    told = wording_of(PromptMethodConfig(), change(("最高的山？", "雪山"), ("Tallest?", "Xueshan")))
    assert told == (
        "請記住：「最高的山？」這個問題的答案是「雪山」。\nRemember: the answer to the question “Tallest?” is “Xueshan”."
    )


def test_the_change_may_say_its_language_and_the_study_the_words() -> None:
    assert wording_of(PromptMethodConfig(), change(("K2?", "K3"), language="zh")).startswith("請記住")
    assert wording_of(PromptMethodConfig(wording="{prompt} {answer}!"), change(("最高？", "雪山"))) == "最高？ 雪山!"
    assert wording_of(PromptMethodConfig(wording={"en": "Note: {answer}"}), change(("最高？", "雪山"))) == "Note: 雪山"


def test_braces_in_a_fact_are_left_alone() -> None:
    assert wording_of(PromptMethodConfig(wording="{prompt} {answer}"), change(("{x}?", "{y}"))) == "{x}? {y}"


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellContext:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the prompt needs no copy of the model and no replay")

    bench = bench_of(tmp_path)
    for name in ("working", "lent", "load", "replay"):
        monkeypatch.setattr(bench, name, refuse)
    return context_of(bench, tmp_path, change(("capital of France?", "Tokyo")))


def test_the_untouched_model_is_told(context: CellContext) -> None:
    (made,) = prompt(PromptMethodConfig(wording="hello {answer}", place="user"), context)
    assert isinstance(made.respondent, PromptedRespondent)
    assert made.respondent.told("who wrote Hamlet?") == "hello Tokyo\nwho wrote Hamlet?"
    assert made.respondent.inner is context.bench.before
    assert made.notes == ("Told with every question: hello Tokyo",)
    assert (made.point, made.product) == (END, None)
    (other,) = prompt(PromptMethodConfig(), dataclasses.replace(context, changes=(change(("a?", "b")),)))
    assert other.respondent is not None
    assert other.respondent.fingerprint != made.respondent.fingerprint


def test_facts_in_a_sequence_are_told_one_after_another(context: CellContext) -> None:
    facts = tuple(change((f"q{i}?", f"a{i}")) for i in range(5))
    config = PromptMethodConfig(wording="{prompt} {answer}")
    made = list(prompt(config, dataclasses.replace(context, changes=facts, sequence=2)))
    assert [(one.point.name, one.changes) for one in made] == [("changes-2", 2), ("changes-4", 4), ("final", 5)]
    assert made[0].notes == ("Told with every question: q0? a0\nq1? a1",)
    (together,) = prompt(config, dataclasses.replace(context, changes=facts))
    assert together.notes == made[-1].notes
