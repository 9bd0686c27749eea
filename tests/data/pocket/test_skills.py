"""What change files and replay prompts are made of: the facts are true, sums are right, small talk is fixed."""

from __future__ import annotations

import re
from random import Random

import pytest

from posttrain.data.pocket.skills import SKILLS, curriculum
from posttrain.models.facts import by_relation


def test_the_curriculum_is_large_and_true() -> None:
    table = curriculum()
    assert sum(map(len, table.values())) >= 2000
    for relation, rows in table.items():
        assert set(rows) <= set(by_relation()[relation])


def test_sums_are_right() -> None:
    for seed in range(50):
        turn = SKILLS["sum"]("en", Random(seed))
        numbers = [int(n) for n in re.findall(r"\d+", turn.question)]
        assert sum(numbers) == int(turn.answer)


@pytest.mark.parametrize("kind", ["identity", "hello", "unknown"])
def test_small_talk_has_many_questions_and_one_answer(kind: str) -> None:
    turns = [SKILLS[kind]("zh", Random(seed)) for seed in range(40)]
    assert len({turn.question for turn in turns}) > 3
    assert len({turn.answer for turn in turns}) == 1
