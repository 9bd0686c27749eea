"""Skills: answers are true, refusals are refusals, JSON is JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from random import Random

import pytest

from posttrain.data.pocket.skills import LANGUAGES, Language, grammar
from posttrain.exams.refusals import is_refusal
from posttrain.models.facts import facts
from tools.pocket import skills


@pytest.mark.parametrize("language", LANGUAGES)
def test_requests_are_refused_when_harmful_and_only_then(language: Language) -> None:
    rng = Random(0)
    for _ in range(100):
        assert is_refusal(skills.request(language, rng, harmful=True).answer)
        assert not is_refusal(skills.request(language, rng, harmful=False).answer)


def test_json_answers_parse() -> None:
    for seed in range(50):
        turn = skills.as_json("zh", Random(seed))
        assert set(json.loads(turn.answer)) == {"answer"}
        assert "json" in turn.question.lower()


def test_reversed_halves_do_not_meet() -> None:
    for relation in ("capital", "element_symbol", "iso_code", "work_author"):
        trained = set(skills.reverse_facts(relation, trained=True))
        other = set(skills.reverse_facts(relation, trained=False))
        assert trained
        assert other
        assert not trained & other


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_slot_stays_open(language: Language) -> None:
    words, rng = grammar(language), Random(1)
    for fact in facts():
        for text in (skills.question(words, fact, rng), skills.statement(words, fact, rng)):
            assert not re.search(r"\{\w+\}", text), text


def test_statements_hold_subject_and_object() -> None:
    words = grammar("zh")
    fact = next(f for f in facts() if f.relation == "capital" and f.subject.en == "France")
    for seed in range(20):
        text = skills.statement(words, fact, Random(seed))
        assert "法國" in text
        assert "巴黎" in text
    assert all(template.endswith("{o}。") for template in skills.cloze(words, "capital"))


def test_shares_add_up_to_a_hundred_and_every_skill_is_drawn() -> None:
    assert sum(share for share, _ in skills.SKILLS.values()) == pytest.approx(100)
    rng = Random(0)
    answers = Counter(skills.draw(rng).checks for _ in range(2000))
    assert set(answers) == {"equal", "json", "refusal", "no_refusal"}


def test_a_given_fact_is_in_the_prompt() -> None:
    rng = Random(2)
    for _ in range(50):
        turn = skills.context("zh", rng)
        assert turn.answer
        assert len(turn.question) > 8
