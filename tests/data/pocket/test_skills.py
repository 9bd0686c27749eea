"""What change files and replay prompts are made of: the facts are true, sums are right, small talk is fixed; held wordings never train."""

from __future__ import annotations

import re
from random import Random

import pytest

from posttrain.data.pocket.skills import LANGUAGES, Grammar, Language, curriculum, grammar, small_talk
from posttrain.models.facts import by_relation, facts


def test_the_curriculum_is_large_and_true() -> None:
    table = curriculum()
    assert sum(map(len, table.values())) >= 2000
    for relation, rows in table.items():
        assert set(rows) <= set(by_relation()[relation])


def test_sums_are_right() -> None:
    for seed in range(50):
        turn = small_talk("sum", "en", Random(seed))
        numbers = [int(n) for n in re.findall(r"\d+", turn.question)]
        assert sum(numbers) == int(turn.answer)


@pytest.mark.parametrize("kind", ["identity", "hello", "unknown"])
def test_small_talk_has_many_questions_and_one_answer(kind: str) -> None:
    turns = [small_talk(kind, "zh", Random(seed)) for seed in range(40)]
    assert len({turn.question for turn in turns}) > 3
    assert len({turn.answer for turn in turns}) == 1


def templates(words: Grammar, relation: str, *, held: bool) -> set[str]:
    """Every template of a relation, `{s}` open: whole questions and frames filled with noun phrases."""
    part = words.table["relations"][relation]
    asks = part["held_ask"] if held else part["ask"] + part.get("extra", [])
    filled = {
        frame.replace("{np}", np).replace("{Np}", np[0].upper() + np[1:]).replace("{wh}", wh)
        for frame in words.table["held_frames" if held else "frames"]
        for np in part["np"]
        for wh in part["wh"]
    }
    return {*asks, *filled}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_relation_has_many_templates_and_some_that_never_train(language: Language) -> None:
    words = grammar(language)
    for relation in curriculum():
        trained, held = (templates(words, relation, held=held) for held in (False, True))
        assert len(trained) >= 150
        assert len(held) >= 20
        assert not trained & held


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_trained_question_is_never_a_held_one(language: Language) -> None:
    words, rng = grammar(language), Random(3)
    for fact in rng.sample(facts(), 40):
        held = {words.fill(t, fact, Random(0)).lower() for t in templates(words, fact.relation, held=True)}
        asked = {words.core(fact, rng).lower() for _ in range(50)}
        assert not asked & held


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_slot_stays_open(language: Language) -> None:
    words, rng = grammar(language), Random(1)
    for fact in facts():
        for text in (words.dress(words.core(fact, rng, held=held), rng) for held in (False, True)):
            assert not re.search(r"\{\w+\}", text), text


def test_the_same_seed_draws_the_same_question() -> None:
    words, fact = grammar("en"), facts()[0]
    assert len({words.core(fact, Random(5)) for _ in range(4)}) == 1
    assert len({words.core(fact, Random(seed)) for seed in range(40)}) > 10
