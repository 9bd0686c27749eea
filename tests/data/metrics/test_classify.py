"""Classification and correlation against scikit-learn and scipy."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from posttrain.data.metrics.classify import accuracy, f1_binary, macro_f1, matthews, pearson, spearman

pytestmark = pytest.mark.filterwarnings("ignore:A single label was found")
binary = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
three = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)
numbers = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30)


@given(binary)
def test_binary(rows: list[tuple[int, int]]) -> None:
    said, true = ([row[i] for row in rows] for i in (0, 1))
    assert f1_binary(said, true) == pytest.approx(f1_score(true, said, zero_division=0))
    assert f1_binary(said, true, positive=0) == pytest.approx(f1_score(true, said, pos_label=0, zero_division=0))
    assert matthews(said, true) == pytest.approx(matthews_corrcoef(true, said))
    assert accuracy(said, true) == accuracy_score(true, said)


@given(three)
def test_three_labels(rows: list[tuple[str, str]]) -> None:
    said, true = ([row[i] for row in rows] for i in (0, 1))
    assert macro_f1(said, true) == pytest.approx(f1_score(true, said, average="macro", zero_division=0))
    assert matthews(said, true) == pytest.approx(matthews_corrcoef(true, said))


@given(numbers)
def test_correlations(rows: list[tuple[int, int]]) -> None:
    a, b = ([row[i] for row in rows] for i in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy: constant input
        expected = np.nan_to_num([float(pearsonr(a, b)[0]), float(spearmanr(a, b)[0])])  # none is 0 here
    assert (pearson(a, b), spearman(a, b)) == pytest.approx(tuple(expected), abs=1e-9)


def test_an_answer_that_names_no_label_is_wrong() -> None:
    """2 TP of 1, FP 0, FN 1: 2 / 3."""
    assert f1_binary([None, 1], [1, 1]) == pytest.approx(2 / 3)
    assert accuracy([None, 1], [1, 1]) == 0.5


def test_constant_answers() -> None:
    assert matthews([1, 1], [1, 0]) == pearson([2, 2], [1, 0]) == spearman([2, 2], [1, 0]) == 0
    assert pearson([0.1 + 0.2, 0.1 + 0.2], [1, 2]) == 0


def test_lengths_must_agree() -> None:
    for metric in (accuracy, f1_binary, macro_f1, matthews, pearson, spearman):
        with pytest.raises(ValueError, match="predictions"):
            metric([1], [1, 0])
        with pytest.raises(ValueError, match="predictions"):
            metric([], [])
