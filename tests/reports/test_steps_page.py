"""The best checkpoint and the point where a score falls, by hand."""

import pytest

from posttrain.reports.steps_page import StepPoint, best, starts_to_fall


def course(*points: tuple[int, float, float, bool]) -> list[StepPoint]:
    """(step, value, difference, different) as points."""
    return [StepPoint(step, value, None, difference, different) for step, value, difference, different in points]


def test_best_is_the_highest_or_the_lowest_and_of_equals_the_earliest() -> None:
    points = course((300, 0.5, 0, False), (100, 0.7, 0, False), (200, 0.7, 0, False), (400, 0.2, 0, False))
    assert best(points) == points[1]
    assert best(points, higher_is_better=False) == points[3]
    assert best([]) is None


def test_knowledge_falls_where_it_is_and_stays_worse() -> None:
    points = course(
        (100, 0.60, -0.02, False), (200, 0.50, -0.12, True), (300, 0.61, -0.01, False), (400, 0.52, -0.10, True),
        (500, 0.40, -0.22, True),
    )  # fmt: skip
    fall = starts_to_fall(points)
    assert fall is not None
    assert fall.step == 400  # the fall at 200 was made good at 300


@pytest.mark.parametrize(
    "points",
    [
        course((100, 0.5, -0.1, True), (200, 0.6, -0.02, False)),  # recovers
        course((100, 0.7, 0.1, True), (200, 0.8, 0.2, True)),  # rises
        course((100, 0.6, -0.02, False), (200, 0.6, -0.02, False)),  # never told apart
        [StepPoint(100, 0.1), StepPoint(200, 0.1)],  # no untouched model to compare with
        [],
    ],
)
def test_what_is_no_fall(points: list[StepPoint]) -> None:
    assert starts_to_fall(points) is None


def test_where_lower_is_better_a_rise_is_the_fall() -> None:
    points = course((100, 20.0, 0.1, False), (200, 30.0, 10.0, True), (300, 31.0, 11.0, True))
    assert starts_to_fall(points) is None
    fall = starts_to_fall(points, higher_is_better=False)
    assert fall is not None
    assert fall.step == 200
