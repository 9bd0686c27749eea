"""Intervals against numbers worked out by hand and against a slow bootstrap."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from posttrain.exams.statistics import (
    bootstrap_over_changes,
    mcnemar,
    paired_bootstrap,
    separate_scores,
    transfer_scores,
    wilson,
)


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


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == mcnemar(c, b) == pytest.approx(expected)


def test_mcnemar_by_hand() -> None:
    """Five to none: 2 / 2^5; ten to two: 2 (1 + 12 + 66) / 2^12; no disagreement says nothing."""
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(10, 2) == 158 / 4096
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    assert mcnemar(0, 5000) == 0  # 2^-4999 is below the smallest float
    assert mcnemar(7000, 7000) == 1


def test_paired_bootstrap_of_right_and_wrong_is_the_plain_one() -> None:
    """The multinomial draws and whole pairs resampled one by one give the same interval but for chance."""
    random.seed(5)
    before = [random.random() < 0.6 for _ in range(400)]
    after = [b if random.random() < 0.7 else not b for b in before]
    differences = np.array(after, float) - np.array(before, float)
    means = [np.mean(random.choices(list(differences), k=400)) for _ in range(4000)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert paired_bootstrap(before, after) == pytest.approx((low, high), abs=0.006)


def test_paired_bootstrap_of_many_values_is_normal() -> None:
    """mean ± 1.96 sd / sqrt(N) for many samples of any distribution."""
    generator = np.random.default_rng(1)
    before = generator.normal(size=5000)
    after = before + generator.exponential(size=5000) * 0.1
    middle, half = float(np.mean(after - before)), float(1.96 * np.std(after - before) / math.sqrt(5000))
    found = paired_bootstrap(list(before), list(after))
    assert found == pytest.approx((middle - half, middle + half), abs=half / 10)


def test_paired_bootstrap_is_seeded_and_signed() -> None:
    before, after = [0, 0, 0, 1, 0, 1], [1, 1, 0, 1, 1, 1]
    found = paired_bootstrap(before, after, seed=3)
    assert found == paired_bootstrap(before, after, seed=3)
    assert found is not None
    assert paired_bootstrap(after, before, seed=3) == pytest.approx((-found.high, -found.low), abs=0.2)
    assert paired_bootstrap([1.0], [0.0]) is None
    assert paired_bootstrap([1.0, 0.5], [0.5, 0.0]) == (-0.5, -0.5)


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    """Scores that vary much between questions and little between models: the paired interval sees the difference."""
    generator = np.random.default_rng(0)
    before = generator.uniform(0, 100, size=200)
    after = before + generator.normal(1, 1, size=200)
    paired = paired_bootstrap(list(before), list(after))
    alone = [bootstrap_over_changes(list(values)) for values in (before, after)]
    assert paired is not None
    assert paired.low > 0
    assert all(interval is not None and interval.high - interval.low > 5 for interval in alone)


BEFORE = [0.1, 0.2, 0.0]
MATRIX = [
    [0.8, 0.3, 0.0],
    [0.9, 0.7, 0.1],
    [0.5, 0.6, 1.0],
]


def test_the_four_numbers_by_hand() -> None:
    found = transfer_scores(BEFORE, MATRIX)
    assert found["acc"] == pytest.approx((0.5 + 0.6 + 1.0) / 3)
    assert found["bwt"] == pytest.approx(((0.5 - 0.8) + (0.6 - 0.7)) / 2)
    assert found["fwt"] == pytest.approx(((0.3 - 0.2) + (0.1 - 0.0)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)


def test_one_training_of_all_tasks_has_an_average_alone() -> None:
    assert transfer_scores(BEFORE, MATRIX[:1]) == {"acc": pytest.approx((0.8 + 0.3) / 3)}
    assert transfer_scores([0.0], [[0.4]]) == {"acc": 0.4}


def test_models_of_their_own_are_asked_their_own_task() -> None:
    assert separate_scores(MATRIX) == {"acc": pytest.approx((0.8 + 0.7 + 1.0) / 3)}


@pytest.mark.parametrize("matrix", [[], MATRIX[:2], [[0.1, 0.2]] * 3])
def test_a_matrix_of_another_shape_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="3 x 3"):
        transfer_scores(BEFORE, matrix)
    if len(matrix) != 3:
        return
    with pytest.raises(ValueError, match="as many models"):
        separate_scores(matrix)
