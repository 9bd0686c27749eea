from __future__ import annotations

import pytest

from posttrain.exams.floor import beside_floor
from posttrain.exams.statistics import cohen_kappa, mean_over_changes, share_over_changes, sign_flips, wilson


def test_a_loss_needs_six_that_differ() -> None:
    """Five lost of five: p = 2 * 0.5^5 = 0.0625; six of six: 0.031."""
    for n, below in ((5, False), (6, True)):
        found = beside_floor({"a": {"locality.x": [0] * n}}, {"a": {"locality.x": [1] * n}})["locality.x"]
        assert found.p_value == pytest.approx(2 / 2**n)
        assert found.below is below


def test_above_the_floor_is_no_loss_and_uncounted_probes_are_left_out() -> None:
    floor = {"a": {"x": [0, 0, 0, 0, 0, 0, 0, 1, None]}}
    found = beside_floor({"a": {"x": [1, 1, 1, 1, 1, 1, 1, None, 1]}, "b": {"x": [0]}}, floor)["x"]
    assert (found.n, found.score, found.floor, found.below) == (7, 1.0, 0.0, False)
    assert found.p_value < 0.05
    assert beside_floor({"a": {"x": [None]}}, {"a": {"x": [1]}}) == {}


def test_sign_flips_by_hand() -> None:
    """Three changes that all fell: of 8 patterns of signs, two are as far from 0. Equal ones say nothing."""
    assert sign_flips([-0.5, -0.25, -0.125]) == 2 / 8
    assert sign_flips([-0.5, -0.25, -0.125, 0.0]) == 2 / 8
    assert sign_flips([0.5, -0.5]) == 1.0
    assert sign_flips([0.0]) == 1.0
    assert sign_flips([-1.0] * 20) < 0.001  # drawn
    assert sign_flips([-1.0] * 20, seed=1) == sign_flips([-1.0] * 20, seed=1)


def test_shares_over_changes() -> None:
    assert share_over_changes([1.0], [1]) == wilson(1, 1)
    assert share_over_changes([1.0] * 8, [10] * 8) == wilson(8, 8)  # all agree: each counts as one
    p, variance = 0.5, 0.02 / 2  # of 0.4 and 0.6
    assert share_over_changes([0.4, 0.6], [50, 50]) == pytest.approx(wilson(12.5, p * (1 - p) / variance))
    assert share_over_changes([0.5, 0.5], [2, 2]) == wilson(1, 2)
    many = share_over_changes([0.49, 0.51], [5, 5])  # no more than the probes that were asked
    assert many == pytest.approx(wilson(5, 10))


def test_means_of_few_changes() -> None:
    assert mean_over_changes([3.0]) is None
    low, high = mean_over_changes([10.0, 12.0]) or (0, 0)
    assert (low, high) == pytest.approx((0.0, 11 + 12.7062))  # standard error 1; no length is below 0
    assert mean_over_changes([-10.0, -12.0]) == pytest.approx((-11 - 12.7062, -11 + 12.7062))
    assert mean_over_changes([0.5, 0.75]) == (0.0, 1.0)


def test_kappa_by_hand() -> None:
    """20 yes-yes, 15 no-no, 5 and 10 apart: p = .7, e = .6 * .5 + .4 * .5 = .5 (Cohen's own example, 1960)."""
    pairs = [(True, True)] * 20 + [(False, False)] * 15 + [(True, False)] * 5 + [(False, True)] * 10
    assert cohen_kappa(pairs) == pytest.approx(0.4)
    assert cohen_kappa([(True, True)] * 3) is None
    assert cohen_kappa([]) is None


def test_too_few_to_tell_is_not_no_loss() -> None:
    """Five that the floor kept can never show a loss, of however many probes; six can, whatever came out."""
    one_of_four = beside_floor({"a": {"x": [1, 0, 0, 0]}}, {"a": {"x": [1, 1, 1, 1]}})["x"]
    assert (one_of_four.score, one_of_four.p_value) == (0.25, 0.25)
    assert (one_of_four.below, one_of_four.testable, one_of_four.unsure) == (False, False, True)
    for kept, testable in ((5, False), (6, True)):
        floor = {"a": {"x": [1] * kept + [0] * 20}}
        found = beside_floor({"a": {"x": [0] + [1] * (kept - 1) + [0] * 20}}, floor)["x"]
        assert (found.below, found.testable, found.unsure) == (False, testable, not testable)
    nothing_fell = beside_floor({"a": {"x": [1, 1]}}, {"a": {"x": [1, 1]}})["x"]
    assert (nothing_fell.testable, nothing_fell.unsure) == (False, False)


def test_with_six_changes_they_have_to_be_able_to_agree() -> None:
    """Twelve kept answers that all stand in one of six changes: p = 1 for the changes, so no loss could be shown."""
    method = {f"c{i}": {"x": [0] * 12 if i == 0 else [0]} for i in range(6)}
    floor = {f"c{i}": {"x": [1] * 12 if i == 0 else [0]} for i in range(6)}
    found = beside_floor(method, floor)["x"]
    assert (found.p_value, found.below, found.testable) == (1.0, False, False)
    spread = beside_floor({f"c{i}": {"x": [0]} for i in range(6)}, {f"c{i}": {"x": [1]} for i in range(6)})["x"]
    assert (spread.p_value, spread.below, spread.testable) == (2 / 64, True, True)


def test_a_fall_that_so_few_could_not_confirm_is_unsure() -> None:
    """From one probe in ten on; fewer than six that differ can show nothing, however many were asked."""
    for lost, of, unsure in ((3, 6, True), (1, 6, True), (5, 50, True), (5, 51, False), (1, 100, False)):
        found = beside_floor({"a": {"x": [0] * lost + [1] * (of - lost)}}, {"a": {"x": [1] * of}})["x"]
        assert (found.below, found.unsure) == (False, unsure), (lost, of)
    enough = beside_floor({"a": {"x": [0] * 6 + [1] * 4}}, {"a": {"x": [1] * 10}})["x"]
    assert (enough.below, enough.unsure) == (True, False)
    both_ways = beside_floor({"a": {"x": [0] * 5 + [1] * 5}}, {"a": {"x": [1] * 8 + [0] * 2}})["x"]
    assert (both_ways.below, both_ways.unsure) == (False, False)  # seven differ and do not agree: they were enough


def test_a_fall_in_few_of_many_changes_is_unsure() -> None:
    """Nine probes lost, p = 0.004 over probes, all of them in three of eight changes, of which no test can be sure."""
    floor = {f"c{i}": {"x": [1, 1, 1]} for i in range(8)}
    found = beside_floor({f"c{i}": {"x": [0, 0, 0] if i < 3 else [1, 1, 1]} for i in range(8)}, floor)["x"]
    assert (found.p_value, found.below, found.unsure) == (0.25, False, True)
