"""Reading and pooling what results.json says of exams."""

import dataclasses

import pytest

from posttrain.reports.examined import Compared, pool, pool_drift, read_compare, read_drift, read_exams

ONE = Compared(100, 0.6, 0.5, -0.1, (-0.15, -0.05), 0.01, (45, 15, 5, 35), (0.05, -0.02), 0.25, agree=1)


def test_several_cells_differ_only_when_each_does() -> None:
    other = dataclasses.replace(
        ONE, ci95=(-0.06, 0.02), after=0.58, difference=-0.02, p_value=0.4, agree=0, counts=(57, 3, 1, 39)
    )
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
        (40, None, (0.03, 0.29), 0, None),  # written by an older version
    ],
)
def test_too_few_questions_to_tell(
    n: int, changed: int | None, ci95: tuple[float, float], agree: int, few: int | None
) -> None:
    entry = {"n": n, "before": 0.4, "after": 0.55, "difference": 0.15, "ci95": ci95, "different": bool(agree)}
    compared = read_compare({"held": entry | ({} if changed is None else {"changed": changed})})["held"]
    assert compared.too_few == few


def test_real_differences_in_opposite_directions_are_none() -> None:
    up = dataclasses.replace(ONE, after=0.75, difference=0.15)
    both = pool([ONE, up])
    assert both is not None
    assert not both.different
    assert both.agree == 1  # only the one that goes where the mean goes


def test_one_cell_stays_as_it_is_and_none_is_none() -> None:
    assert pool([ONE]) is ONE
    assert pool([]) is None


def test_entries_without_numbers_are_left_out() -> None:
    assert read_compare({"a": {"before": None, "after": 0.5, "difference": None}}) == {}
    assert read_compare(None) == {}


def test_exams_of_old_results_are_none_and_the_change_exam_is_not_among_them() -> None:
    assert read_exams({}) == ()
    found = read_exams({"exams": {"change": {"headline": "reliability"}, "mmlu": {"headline": "mmlu.acc"}}})
    assert [(exam.name, exam.key) for exam in found] == [("mmlu", "mmlu.acc")]
    assert found[0].score("mmlu.acc/law") == "acc/law"
    assert found[0].score("mmlu-zh.acc") is None


def test_drift_is_the_mean_over_cells_and_a_zero_baseline_has_none() -> None:
    def cell(change: float | None) -> dict[str, object]:
        score = {"score": "mmlu.acc", "before": 0.5, "after": 0.4, "change": change}
        zero = {"score": "gsm8k.acc", "before": 0.0, "after": 0.1, "change": None}
        return {"can.knowledge": {"change": change, "direction": "better", "scores": [score, zero]},
                "will.verbosity": {"change": 0.5, "direction": "none", "scores": []}}  # fmt: skip

    pooled = pool_drift([read_drift(cell(-0.2)), read_drift(cell(-0.1))])
    assert pooled["can.knowledge"].change == pytest.approx(-0.15)
    assert [one.change for one in pooled["can.knowledge"].scores] == [pytest.approx(-0.15), None]
    assert not pooled["will.verbosity"].directed
