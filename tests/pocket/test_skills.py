"""Skills: answers are true, refusals are refusals, JSON is JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from random import Random

import pytest

from posttrain.exams.matching import is_refusal
from posttrain.models.facts import by_relation
from posttrain.pocket import skills
from posttrain.pocket.grammar import LANGUAGES, Language


def test_the_curriculum_is_large_and_true() -> None:
    table = skills.curriculum()
    assert sum(map(len, table.values())) >= 2000
    for relation, rows in table.items():
        assert set(rows) <= set(by_relation()[relation])


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


def test_sums_are_right() -> None:
    for seed in range(50):
        turn = skills.add("en", Random(seed))
        numbers = [int(n) for n in re.findall(r"\d+", turn.question)]
        assert sum(numbers) == int(turn.answer)


def test_reversed_halves_do_not_meet() -> None:
    for relation in ("capital", "element_symbol", "iso_code", "work_author"):
        trained = set(skills.reverse_facts(relation, trained=True))
        other = set(skills.reverse_facts(relation, trained=False))
        assert trained
        assert other
        assert not trained & other


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
