"""The wordings: every relation can be asked and stated, and what is held out never trains."""

from __future__ import annotations

import re
from random import Random

import pytest

from posttrain.models.facts import facts
from posttrain.pocket.grammar import LANGUAGES, Grammar, Language, grammar
from posttrain.pocket.skills import check_grammar, curriculum


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_relation_has_many_templates_and_some_that_never_train(language: Language) -> None:
    words = grammar(language)
    check_grammar(words)
    for relation in curriculum():
        trained, held = set(words.cores(relation, held=False)), set(words.cores(relation, held=True))
        assert len(trained) >= 150
        assert len(held) >= 20
        assert not trained & held


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_trained_question_is_never_a_held_one(language: Language) -> None:
    words, rng = grammar(language), Random(3)
    for fact in rng.sample(facts(), 40):
        held = {words.fill(t, fact, Random(0)).lower() for t in words.cores(fact.relation, held=True)}
        asked = {words.core(fact, rng).lower() for _ in range(50)}
        assert not asked & held


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_slot_stays_open(language: Language) -> None:
    words, rng = grammar(language), Random(1)
    for fact in facts():
        for text in (words.question(fact, rng), words.question(fact, rng, held=True), words.statement(fact, rng)):
            assert not re.search(r"\{\w+\}", text), text


def test_statements_hold_subject_and_object() -> None:
    words = grammar("zh")
    fact = next(f for f in facts() if f.relation == "capital" and f.subject.en == "France")
    for seed in range(20):
        text = words.statement(fact, Random(seed))
        assert "法國" in text
        assert "巴黎" in text
    assert all(template.endswith("{o}。") for template in words.cloze("capital"))


def test_the_same_seed_draws_the_same_question() -> None:
    words: Grammar = grammar("en")
    fact = facts()[0]
    assert [words.question(fact, Random(5)) for _ in range(3)] == [words.question(fact, Random(5))] * 3
