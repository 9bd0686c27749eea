"""Calibration against scikit-learn's calibration curve and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from posttrain.exams.metrics.calibration import ece_equal_mass, ece_equal_width, selective_accuracy, selective_area

samples = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def split(rows: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [row[0] for row in rows], [row[1] for row in rows]


@given(samples, st.integers(1, 15))
def test_equal_width_against_scikit_learn(rows: list[tuple[float, bool]], bins: int) -> None:
    confidence, right = split(rows)
    share, mean = calibration_curve(right, confidence, n_bins=bins, strategy="uniform")
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    weights = np.bincount(places, minlength=bins)
    expected = np.abs(share - mean) @ weights[weights > 0] / len(rows)
    assert ece_equal_width(confidence, right, bins=bins) == pytest.approx(expected)


def test_equal_mass_against_scikit_learn() -> None:
    """Without ties and with N divisible by the bins, both split into the same tenths."""
    generator = np.random.default_rng(3)
    confidence = generator.permutation(500) / 500
    right = generator.random(500) < np.round(confidence * 5) / 5  # over- and underconfident by turns
    share, mean = calibration_curve(right, confidence, n_bins=10, strategy="quantile")
    assert ece_equal_mass(list(confidence), list(right)) == pytest.approx(np.abs(share - mean).mean())


def test_by_hand() -> None:
    """Two bins: 0.2, 0.4 (none right) and 0.6, 0.8 (both): |0.3 - 0| / 2 + |0.7 - 1| / 2."""
    confidence, right = [0.6, 0.2, 0.8, 0.4], [True, False, True, False]
    assert ece_equal_mass(confidence, right, bins=2) == pytest.approx(0.3)
    assert ece_equal_width(confidence, right, bins=2) == pytest.approx(0.3)
    assert ece_equal_mass(confidence, right, bins=1) == pytest.approx(0)  # |0.5 - 0.5|


def test_a_boundary_belongs_to_the_bin_below() -> None:
    """(0, 0.5] holds 0.5: one bin of 0.5 and 0.1, half right: |0.3 - 0.5|."""
    assert ece_equal_width([0.5, 0.1], [True, False], bins=2) == pytest.approx(0.2)


def test_equal_confidences_share_a_bin() -> None:
    """Twenty times 0.7, 14 right: calibrated, however many bins are asked for."""
    assert ece_equal_mass([0.7] * 20, [True] * 14 + [False] * 6) == pytest.approx(0)


def test_fewer_samples_than_bins() -> None:
    assert ece_equal_mass([0.9, 0.3], [True, False]) == pytest.approx((0.1 + 0.3) / 2)


def test_selective_by_hand() -> None:
    """From confident to not: right, right, wrong, right, wrong; shares 1, 1, 2/3, 3/4, 3/5."""
    confidence, right = [0.1, 0.9, 0.5, 0.8, 0.4], [False, True, False, True, True]
    assert selective_area(confidence, right) == pytest.approx((1 + 1 + 2 / 3 + 3 / 4 + 3 / 5) / 5)
    assert selective_accuracy(confidence, right) == 1  # int(0.5) + 1 = the first
    assert selective_accuracy(confidence, right, coverage=0.5) == pytest.approx(2 / 3)  # int(2.5) + 1 = three
    assert selective_accuracy(confidence, right, coverage=1.0) == pytest.approx(3 / 5)


@given(samples, st.randoms())
def test_order_of_the_file_does_not_count(rows: list[tuple[float, bool]], random: object) -> None:
    rounded = [(round(c, 1), r) for c, r in rows]  # ties
    other = sorted(rounded, key=lambda row: (row[1], row[0]))
    for metric in (ece_equal_mass, ece_equal_width, selective_accuracy, selective_area):
        assert metric(*split(rounded)) == pytest.approx(metric(*split(other)))
        assert 0 <= metric(*split(rounded)) <= 1 + 1e-12


@given(samples)
def test_selective_without_ties_is_helms(rows: list[tuple[float, bool]]) -> None:
    """HELM: sort by confidence, cumulated accuracy, its mean and its value at int(0.1 N)."""
    confidence, right = split(list({c: (c, r) for c, r in rows}.values()))
    order = np.argsort(-np.array(confidence))
    shares = np.cumsum(np.array(right)[order]) / np.arange(1, len(order) + 1)
    assert selective_area(confidence, right) == pytest.approx(shares.mean())
    assert selective_accuracy(confidence, right) == pytest.approx(shares[int(0.1 * len(order))])


def test_what_is_no_probability_is_an_error() -> None:
    with pytest.raises(ValueError, match="probability"):
        ece_equal_mass([1.2], [True])
    with pytest.raises(ValueError, match="samples"):
        ece_equal_mass([0.2], [True, False])
    with pytest.raises(ValueError, match="samples"):
        selective_area([], [])
