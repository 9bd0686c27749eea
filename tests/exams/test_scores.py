"""Averages over changes."""

from posttrain.exams.scores import ExamResult, merged_notes, summarise
from posttrain.exams.statistics import Interval, bootstrap_over_changes


def result(**scores: float) -> ExamResult:
    return ExamResult(scores, {name: Interval(0.0, 1.0) for name in scores}, dict.fromkeys(scores, 5))


def test_summary_by_hand() -> None:
    summary = summarise([result(a=1.0, b=0.5), result(a=0.0), result(a=0.5)], seed=3)
    assert summary.scores == {"a": 0.5, "b": 0.5}
    assert summary.n == {"a": 15, "b": 5}
    assert summary.changes == {"a": 3, "b": 1}
    assert summary.ci95["a"] == bootstrap_over_changes([1.0, 0.0, 0.5], seed=3)
    assert summary.ci95["b"] == (0.0, 1.0)  # one change keeps its own interval


def test_summary_of_plain_scores() -> None:
    summary = summarise([{"a": 1.0}, {"a": 0.0}], n=[{"a": 2}, {"a": 3}])
    assert (summary.scores["a"], summary.n["a"]) == (0.5, 5)
    assert summarise([]).scores == {}


def test_notes_of_several_changes_are_added_up() -> None:
    notes = [["1 of 2 targets were met", "3 of 4 answers were cut"], ["1 of 3 targets were met"], []]
    assert merged_notes(notes) == ["2 of 5 targets were met", "3 of 4 answers were cut"]
