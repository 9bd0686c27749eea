"""A callback as a generator, points and their names."""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import pytest

from posttrain.studies.candidates import END, Candidate, Point, handed_over

MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")


@pytest.mark.parametrize(
    ("point", "name"),
    [
        (END, "final"),
        (Point("step", 500), "step-500"),
        (Point("stage", "gloss a/b"), "stage-gloss-a-b"),
        (Point("blend", 0.3), "blend-0.30"),
        (Point("changes", 20), "changes-20"),
        (Point("step", 5, "2-train"), "2-train.step-5"),
    ],
)
def test_names_of_points(point: Point, name: str) -> None:
    assert point.name == name


def candidate(step: int) -> Candidate:
    return Candidate(Point("step", step), None)


def test_what_calls_back_is_asked_for_one_candidate_after_another() -> None:
    told: list[str] = []

    def work(give: Callable[[Candidate], None]) -> str:
        for step in (1, 2):
            told.append(f"before {step}")
            give(candidate(step))
            told.append(f"after {step}")
        return "done"

    given = handed_over(work)
    assert told == []
    assert next(given).point.value == 1
    assert told == ["before 1"]
    assert next(given).point.value == 2
    with pytest.raises(StopIteration) as end:
        next(given)
    assert (end.value.value, told[-1]) == ("done", "after 2")


def test_work_that_gives_nothing_only_returns() -> None:
    with pytest.raises(StopIteration) as end:
        next(handed_over(lambda give: 3))
    assert end.value.value == 3


def test_an_error_of_the_work_is_raised_where_the_next_candidate_is_asked_for() -> None:
    def work(give: Callable[[Candidate], None]) -> None:
        give(candidate(1))
        raise ValueError("loss is nan")

    given = handed_over(work)
    next(given)
    with pytest.raises(ValueError, match="loss is nan"):
        next(given)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_of_an_exam_is_raised_where_the_candidate_was_given(error: type[BaseException]) -> None:
    saved: list[str] = []

    def work(give: Callable[[Candidate], None]) -> None:
        try:
            give(candidate(1))
        finally:
            saved.append("saved")

    given = handed_over(work)
    next(given)
    with pytest.raises(error):
        given.throw(error())
    assert saved == ["saved"]


def test_work_that_is_given_up_is_unwound() -> None:
    unwound: list[str] = []

    def work(give: Callable[[Candidate], None]) -> None:
        try:
            give(candidate(1))
        finally:
            unwound.append("yes")

    given = handed_over(work)
    next(given)
    given.close()
    assert unwound == ["yes"]


def test_it_sees_the_context_that_it_was_called_in() -> None:
    seen: list[str] = []

    def work(give: Callable[[Candidate], None]) -> None:
        seen.append(MARK.get())
        give(candidate(1))
        seen.append(MARK.get())

    mark = MARK.set("study")
    list(handed_over(work))
    MARK.reset(mark)
    assert seen == ["study", "study"]


def test_two_of_them_may_take_turns() -> None:
    def work(give: Callable[[Candidate], None]) -> None:
        for step in range(3):
            give(candidate(step))

    one, other = handed_over(work), handed_over(work)
    found = [next(each).point.value for _ in range(3) for each in (one, other)]
    assert found == [0, 0, 1, 1, 2, 2]
