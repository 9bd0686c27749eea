from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.change import Change
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.models.load import load_model
from posttrain.studies.context import MethodContext
from posttrain.studies.methods.prompt import PromptMethodConfig, language_of, prompt, wording_of
from tests.talker import talker


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
def context(tmp_path: Path) -> MethodContext:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the prompt needs no copy of the model and no replay")

    return MethodContext(
        change=change(("capital of France?", "Tokyo")),
        seed=0,
        base=tmp_path,
        folder=tmp_path,
        key="k",
        before=ModelRespondent(load_model(str(talker()), device="cpu")),
        working=refuse,
        load=refuse,
        replay=refuse,
        forbidden=frozenset(),
    )


def test_the_untouched_model_is_told(context: MethodContext) -> None:
    made = prompt(PromptMethodConfig(wording="hello {answer}", place="user"), context)
    assert isinstance(made.respondent, PromptedRespondent)
    assert made.respondent.told("who wrote Hamlet?") == "hello Tokyo\nwho wrote Hamlet?"
    assert made.respondent.inner is context.before
    assert made.notes == ("Told with every question: hello Tokyo",)
    assert made.weights is None
    other = prompt(PromptMethodConfig(), dataclasses.replace(context, change=change(("a?", "b"))))
    assert other.respondent.fingerprint != made.respondent.fingerprint
