"""Averages over changes, and over the seeds of a change."""

import pytest

from posttrain.exams.results import Line, Summary
from posttrain.exams.statistics import Interval
from posttrain.exams.summary import summarise


def line(change: str, seed: int = 0, **scores: float) -> Line:
    return Line(
        model="m", method="full", change=change, seed=seed, scores=scores, n=dict.fromkeys(scores, 5),
        ci95={name: Interval(0.0, 1.0) for name in scores},
    )  # fmt: skip


def test_summary_by_hand() -> None:
    (summary,) = summarise([line("x", a=0.6, b=0.5), line("y", a=0.4), line("z", a=0.5)])
    assert summary.scores == pytest.approx({"a": 0.5, "b": 0.5})
    assert summary.n == {"a": 15, "b": 5}
    assert summary.changes == {"a": 3, "b": 1}
    half = 4.3027 * 0.1 / 3**0.5  # Student's t for three
    assert summary.ci95["a"] == pytest.approx((0.5 - half, 0.5 + half))
    assert summary.ci95["b"] == (0.0, 1.0)  # one change keeps its own interval


def test_seeds_of_a_change_are_averaged_first() -> None:
    (summary,) = summarise([line("x", 0, a=1.0), line("x", 1, a=0.0), line("y", 0, a=1.0)])
    assert summary.scores["a"] == 0.75
    assert summary.changes == {"a": 2}


def test_of_nothing_there_is_no_row() -> None:
    failed: list[Line] = [line("x", a=1.0).model_copy(update={"status": "failed"})]
    assert summarise([]) == summarise(failed) == ()
    assert Summary(model="m", method="full").scores == {}
