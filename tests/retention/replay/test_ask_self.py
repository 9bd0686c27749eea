from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.errors import TemplateError
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from posttrain.retention.replay.ask_self import AskSelfReplayConfig, ask_self, sample_questions, user_turn
from posttrain.retention.selection import ReplayContext
from tests.pico import FAMILIES
from tests.talker import KNOWN


def test_it_asks_what_it_was_asked_and_answers_itself(context: ReplayContext, told: list[str]) -> None:
    context = dataclasses.replace(context, forbidden=frozenset({"hello!"}))
    rows = ask_self(AskSelfReplayConfig(n=6), context)
    asked = {row.messages[0].content: row.messages[1].content for row in rows}
    assert "hello" not in asked
    assert len(set(asked.items()) & set(KNOWN.items())) >= 4
    assert told[0].startswith("replay: ")
    assert "1 asked by the exam left out" in told[-1]


def test_questions_differ_and_depend_on_the_seed_only(context: ReplayContext) -> None:
    config = AskSelfReplayConfig(n=5)
    first = sample_questions(config, context)
    assert first == sample_questions(config, context)
    assert len(set(first)) == len(first) <= 5
    others = {tuple(sample_questions(config, dataclasses.replace(context, seed=s))) for s in (1, 2, 3)}
    assert others != {tuple(first)}


def test_a_question_without_an_end_is_no_question(context: ReplayContext, told: list[str]) -> None:
    questions = sample_questions(AskSelfReplayConfig(n=6, max_prompt_tokens=4), context)
    assert set(questions) < set(KNOWN)
    assert " 0 without an end" not in told[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_users_turn_of_every_family(pico_path: Callable[[str], Path], family: str) -> None:
    turn = user_turn(ModelRespondent(load_model(str(pico_path(family)), device="cpu")))
    assert turn.ids[-1] == 4  # <|user|>
    assert turn.stop == 2  # <|end|>


def with_template(respondent: ModelRespondent, template: str | None) -> ModelRespondent:
    import copy

    other = ModelRespondent(load_model(respondent.name, device="cpu"))
    other.tokenizer = copy.deepcopy(respondent.tokenizer)
    other.tokenizer.chat_template = template
    return other


def test_a_closing_tag_in_plain_letters(respondent: ModelRespondent) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
    )
    turn = user_turn(with_template(respondent, template))
    assert turn.stop is None
    assert turn.after == "[/INST]"


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }}{% endfor %}", "constant"])
def test_a_template_without_a_user_tag_is_refused(respondent: ModelRespondent, template: str | None) -> None:
    with pytest.raises(TemplateError, match=r"use replay \{kind: self\}"):
        user_turn(with_template(respondent, template))
