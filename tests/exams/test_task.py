"""Choosing by likelihood."""

from __future__ import annotations

import math

import pytest

from posttrain.exams.task import choice_asks, chosen
from posttrain.inference.protocol import Plain, Scored


def test_the_likeliest_and_how_sure() -> None:
    replies = [Scored(math.log(0.1), 1, 0), Scored(math.log(0.3), 9, 0), Scored(math.log(0.1), 1, 0)]
    choice = chosen(replies, ["aa", "b", "cccc"])
    assert choice.best == 1
    assert choice.shares == pytest.approx((0.2, 0.6, 0.2))
    assert choice.normed == 2  # ln 0.1 / 4 bytes is more than ln 0.3 / 1


def test_very_unlikely_choices_do_not_underflow() -> None:
    choice = chosen([Scored(-5000.0, 1, 0), Scored(-5000.0 + math.log(3), 1, 0)], ["a", "b"])
    assert choice.shares == pytest.approx((0.25, 0.75))


@pytest.mark.parametrize(
    ("prompt", "choice", "expected"),
    [
        (Plain("Answer:"), "yes", " yes"),
        (Plain("Answer: "), "yes", "yes"),
        (Plain("Answer:"), " yes", " yes"),
        (Plain("答案："), "yes", "yes"),
        (Plain("Answer:"), "是", "是"),
        ("Answer:", "yes", "yes"),
    ],
)
def test_the_space_before_a_choice(prompt: Plain | str, choice: str, expected: str) -> None:
    (ask,) = choice_asks(prompt, [choice])
    assert ask.continuation == expected
