"""TruthfulQA's scores by hand and against the plain formulas where those do not overflow."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.exams.metrics.truthful import Similarity, log_sum_exp, mc1, mc2, mc3, similarity

logs = st.lists(st.floats(-50, 0), min_size=1, max_size=6)


def test_by_hand() -> None:
    true, false = [math.log(0.3), math.log(0.1)], [math.log(0.2), math.log(0.05)]
    assert mc1(true[0], false) == 1
    assert mc1(true[1], false) == 0  # the best answer, not any true one
    assert mc2(true, false) == pytest.approx(0.4 / 0.65)
    assert mc3(true, false) == 0.5


def test_ties_are_not_won() -> None:
    assert mc1(-2.0, [-2.0]) == 0
    assert mc3([-2.0, -1.0], [-2.0]) == 0.5
    assert similarity([3.0], [3.0]) == Similarity(3.0, 0.0, 0.0)


def test_similarity() -> None:
    assert similarity([10.0, 42.0], [40.0, 3.0]) == Similarity(42.0, 2.0, 1.0)
    assert similarity([10.0], [40.0]) == Similarity(10.0, -30.0, 0.0)


@given(logs, logs)
def test_the_plain_formulas(true: list[float], false: list[float]) -> None:
    on_true, on_false = (sum(map(math.exp, values)) for values in (true, false))
    assert mc2(true, false) == pytest.approx(on_true / (on_true + on_false))
    assert mc1(true[0], false) == (1 if all(true[0] > f for f in false) else 0)
    assert mc3(true, false) == sum(all(t > f for f in false) for t in true) / len(true)


@pytest.mark.parametrize("shift", [-5000.0, 5000.0])
def test_long_answers_neither_vanish_nor_overflow(shift: float) -> None:
    """exp(-5000) is 0 and exp(5000) no float; the ratio is the same as without the shift."""
    assert mc2([shift, shift - 1], [shift - 0.5]) == pytest.approx(mc2([0.0, -1.0], [-0.5]))


def test_impossible_answers() -> None:
    assert mc2([-math.inf], [-math.inf]) == 0
    assert mc2([-math.inf, -1.0], [-math.inf]) == 1
    assert log_sum_exp([]) == -math.inf
