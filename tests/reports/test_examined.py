"""Comparisons and drifts of several cells as one."""

import dataclasses

import pytest

from posttrain.exams.capabilities import Drift, DriftScore
from posttrain.exams.compare import Comparison, compare
from posttrain.exams.results import CHANGE, ExamInfo
from posttrain.exams.score_spec import specs
from posttrain.exams.statistics import Interval
from posttrain.reports.examined import pool, pool_drift

ONE = Comparison(
    100, "acc", "acc", 0.6, 0.5, -0.1, Interval(-0.15, -0.05), 0.01, True, False, kept_right=45, forgotten=15, gained=5,
    kept_wrong=35, forgotten_adjusted=0.05, gained_adjusted=-0.02, chance=0.25,
)  # fmt: skip


def test_several_cells_differ_only_when_each_does() -> None:
    other = dataclasses.replace(
        ONE, ci95=Interval(-0.06, 0.02), after=0.58, difference=-0.02, p_value=0.4, different=False, kept_right=57,
        forgotten=3, gained=1, kept_wrong=39,
    )  # fmt: skip
    both = pool([ONE, ONE])
    assert both is not None
    assert both.different
    assert both.counts == (90, 30, 10, 70)
    assert both.adjusted == (0.05, -0.02)
    mixed = pool([ONE, other])
    assert mixed is not None
    assert not mixed.different
    assert (mixed.agree, mixed.cells, mixed.p_value) == (1, 2, 0.4)
    assert mixed.ci95 == (-0.15, 0.02)  # the span of both
    assert mixed.difference == pytest.approx(-0.06)
    assert mixed.counts == (102, 18, 6, 74)


@pytest.mark.parametrize(
    ("n", "changed", "ci95", "agree", "few"),
    [
        (5, 5, (0.03, 0.29), 0, 5),
        (5, 3, (-0.1, 0.29), 0, 5),
        (40, 4, (0.03, 0.29), 0, 4),
        (40, 4, (-0.1, 0.29), 0, None),  # the interval says by itself that nothing is told
        (40, 12, (0.03, 0.29), 0, None),
        (40, 12, (0.03, 0.29), 1, None),
        (40, None, (0.03, 0.29), 0, None),  # not known
    ],
)
def test_too_few_questions_to_tell(
    n: int, changed: int | None, ci95: tuple[float, float], agree: int, few: int | None
) -> None:
    whole = Comparison(
        n, "acc", "acc", 0.4, 0.55, 0.15, Interval(*ci95), None, bool(agree), True if agree else None, changed=changed
    )
    one = pool([whole])
    assert one is not None
    assert one.too_few == few


def test_real_differences_in_opposite_directions_are_none() -> None:
    up = dataclasses.replace(ONE, after=0.75, difference=0.15)
    both = pool([ONE, up])
    assert both is not None
    assert not both.different
    assert both.agree == 1  # only the one that goes where the mean goes


def test_one_cell_stays_as_it_is_and_none_is_none() -> None:
    one = pool([ONE])
    assert one is not None
    assert (one.n, one.before, one.after, one.difference, one.ci95) == (100, 0.6, 0.5, -0.1, (-0.15, -0.05))
    assert (one.p_value, one.counts, one.adjusted) == (0.01, (45, 15, 5, 35), (0.05, -0.02))
    assert (one.cells, one.agree) == (1, 1)
    assert pool([]) is None


def test_nothing_to_compare_is_no_comparison() -> None:
    assert pool([compare([], [], headline="acc")]) is None


def test_keys_of_an_exam_and_of_the_change_exam() -> None:
    mmlu = ExamInfo(name="mmlu", kind="mmlu", headline="acc", scores=specs("acc"))
    assert mmlu.key == "mmlu.acc"
    assert mmlu.score("mmlu.acc/law") == "acc/law"
    assert mmlu.score("mmlu-zh.acc") is None
    change = ExamInfo(name="change", kind=CHANGE, headline="reliability", scores=specs("reliability"))
    assert change.key == "reliability"
    assert change.score("reliability") == "reliability"
    assert change.score("mmlu.acc") is None


def test_drift_is_the_mean_over_cells_and_a_zero_baseline_has_none() -> None:
    def cell(change: float) -> dict[str, Drift]:
        score, zero = DriftScore("mmlu.acc", 0.5, 0.4, change=change), DriftScore("gsm8k.acc", 0.0, 0.1)
        return {"can.knowledge": Drift(change, "better", (score, zero)), "will.verbosity": Drift(0.5, "none")}

    pooled = pool_drift([cell(-0.2), cell(-0.1)])
    assert pooled["can.knowledge"].change == pytest.approx(-0.15)
    assert [one.change for one in pooled["can.knowledge"].scores] == [pytest.approx(-0.15), None]
    assert not pooled["will.verbosity"].directed
