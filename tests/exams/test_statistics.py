"""Intervals against numbers worked out by hand and against a slow bootstrap."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.exams.statistics import bootstrap_over_changes, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),  # z²/(n + z²) = 3.841459 / 13.841459
        (10, 10, 0.722467, 1.0),
        (8, 10, 0.490162, 0.943318),  # (0.8 + 0.192073 ± 1.959964 * sqrt(0.016 + 0.009604)) / 1.384146
        (1, 1, 0.206549, 1.0),
        (50, 100, 0.403832, 0.596168),
    ],
)
def test_wilson_by_hand(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_holds_the_share_and_mirrors(k: int, n: int) -> None:
    k = min(k, n)
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_bootstrap_is_set_by_its_seed() -> None:
    values = [0.1, 0.4, 0.35, 0.8, 0.2]
    assert bootstrap_over_changes(values, seed=1) == bootstrap_over_changes(values, seed=1)
    assert bootstrap_over_changes(values, seed=1) != bootstrap_over_changes(values, seed=2)


def test_bootstrap_against_a_slow_one() -> None:
    values = [0.0, 0.2, 0.2, 0.5, 0.9, 1.0, 1.0, 0.3]
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(10_000))
    found = bootstrap_over_changes(values)
    assert found is not None
    assert found == pytest.approx((means[250], means[9750]), abs=0.02)


def test_bootstrap_of_many_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000).tolist()
    found = bootstrap_over_changes(values)
    assert found is not None
    half = 1.96 * float(np.std(values)) / math.sqrt(2000)
    assert found == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.01)


def test_bootstrap_of_too_few_or_equal_values() -> None:
    assert bootstrap_over_changes([]) is None
    assert bootstrap_over_changes([0.5]) is None
    assert bootstrap_over_changes([1.0, 1.0, 1.0]) == (1.0, 1.0)
