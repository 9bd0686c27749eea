"""How far long work is: what is told, to whom, how often, and what an interruption says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.errors import Interrupted
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from posttrain.models.meter import Doing, Meter, clock, listener, listening, tick


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (65, "1 min 05 s"), (3599.9, "1 h 00 min"), (9000, "2 h 30 min")],
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words


def test_counts_speed_and_what_is_left(now: list[float]) -> None:
    told: list[Doing] = []
    with listening(told.append), Meter("measuring", 40, "rows") as meter:
        for _ in range(40):
            now[0] += 2.0
            meter.more(1, tokens=100)
    assert told[0].begins
    assert str(told[0]) == "measuring: 0/40 rows"
    assert str(told[1]) == "measuring: 1/40 rows  50 tokens/s"  # a fortieth is not enough to tell by
    assert str(told[2]) == "measuring: 2/40 rows  50 tokens/s  1 min 16 s left"
    assert told[-1].ends
    assert [work.ends for work in told].count(True) == 1
    assert str(told[-1]) == "measuring: 40/40 rows  50 tokens/s"


def test_what_was_done_before_is_counted_and_tells_nothing_of_the_speed(now: list[float]) -> None:
    told: list[Doing] = []
    with listening(told.append), Meter("editing", 40, "edits", already=30) as meter:
        for _ in range(10):
            now[0] += 6.0
            meter.more(1)
    assert str(told[0]) == "editing: 30/40 edits"
    assert str(told[1]) == "editing: 31/40 edits  54 s left"
    assert str(told[-1]) == "editing: 40/40 edits"


def test_pieces_that_end_at_different_times_are_told_by_the_most_they_may_come_to(now: list[float]) -> None:
    told: list[Doing] = []
    with listening(told.append), Meter("answering", 10, "prompts", most_tokens=1000) as meter:
        now[0] += 5.0
        for _ in range(100):
            meter.token(0, [])
        assert told[-1].left_s is None  # five seconds of reading prompts are no speed of writing
        now[0] += 1.0
        meter.token(0, [])
        assert told[-1].left_s is None
        now[0] += 3.0
        meter.more(tokens=300)
        assert (str(told[-1]).split("  ")[-1], told[-1].at_most) == (
            "at most 6 s left",
            True,
        )  # 599 more at 400 in 4 s
        now[0] += 1.0
        for place in range(8):
            meter.piece(place, None)
        meter.more(tokens=1)
        now[0] += 1.0
        meter.more(tokens=1)
    # a quarter of 11 s, less than the most: 597 more at 402 in 6 s
    assert str(told[-2]) == "answering: 8/10 prompts  37 tokens/s  3 s left"


def test_the_first_figure_is_not_the_first_second_s(now: list[float]) -> None:
    """64 answers at once, each of 128 tokens at most: ten seconds go by before any has its first token."""
    told: list[Doing] = []
    with listening(told.append), Meter("answering", 64, "prompts", most_tokens=64 * 128) as meter:
        now[0] += 10.0
        for _ in range(20 * 6):
            for place in range(64):
                meter.token(place, [])
            now[0] += 0.1
    left = [work.left_s for work in told if work.left_s is not None]
    assert told[1].left_s is None
    assert max(left) < 12.8  # all of it takes 12.8 s from the first token on


def test_pieces_are_not_told_by_the_first_of_them(now: list[float]) -> None:
    told: list[Doing] = []
    with listening(told.append), Meter("measuring", 10, "rows") as meter:
        now[0] += 2.5
        meter.more(1)
        assert told[-1].left_s is None
        now[0] += 0.5
        meter.more(1)
        assert told[-1].left_s == pytest.approx(12.0)


def test_not_for_every_piece(now: list[float]) -> None:
    told: list[Doing] = []
    with listening(told.append), Meter("counting", 1000, "rows") as meter:
        for _ in range(1000):
            now[0] += 0.01
            meter.more(1)
    assert 90 <= len(told) <= 102


def test_nobody_needs_to_listen_and_the_innermost_hears() -> None:
    assert listener() is None
    outer: list[Doing] = []
    inner: list[Doing] = []
    with listening(outer.append):
        with listening(inner.append), Meter("a", 1, "rows"):
            pass
        with listening(None), Meter("b", 1, "rows"):
            pass
        with Meter("c", 0, "rows"):
            pass
    with Meter("d", 1, "rows") as meter:
        meter.more(1)
    assert listener() is None
    assert {work.what for work in inner} == {"a"}
    assert {work.what for work in outer} == {"c"}


def test_what_is_over_in_a_moment_is_not_told_of(now: list[float]) -> None:
    told: list[Doing] = []
    with listening(told.append):
        with Meter("loading", 4, "tensors", after_s=1.0) as meter:
            for _ in range(4):
                now[0] += 0.2
                meter.more(1)
        assert told == []
        with Meter("loading", 4, "tensors", after_s=1.0) as meter:
            for _ in range(4):
                now[0] += 0.6
                meter.more(1)
    assert [str(work) for work in told] == [f"loading: {done}/4 tensors" for done in (2, 3, 4)]
    assert [work.ends for work in told] == [False, False, True]


def test_an_interruption_of_which_there_is_nothing_to_say_stays_what_it_is() -> None:
    with pytest.raises(KeyboardInterrupt), Meter("loading", 2, "tensors", kept=None):
        raise KeyboardInterrupt


def test_what_is_begun_anew_is_counted_anew(now: list[float]) -> None:
    told: list[Doing] = []
    with listening(told.append), Meter("measuring", 4, "rows") as meter:
        meter.more(2, tokens=9)
        meter.again()
        now[0] += 1.0
        meter.more(1, tokens=1)
    assert (told[1].done, told[1].tokens) == (1, 1)


def test_an_interruption_says_what_was_done_and_what_is_kept() -> None:
    told: list[Doing] = []

    def interrupted(meter: Meter) -> None:
        with listening(told.append), meter:
            meter.more(3)
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        interrupted(Meter("measuring", 1000, "rows"))
    kept = "nothing of it is kept, the same command begins it anew"
    assert str(caught.value) == f"stopped while measuring (3 of 1,000 rows); {kept}"
    assert told[-1].ends
    assert tick() is None
    with pytest.raises(Interrupted, match=r"; all is kept$"):
        interrupted(Meter("measuring", 1000, "rows", kept="all is kept"))
    with pytest.raises(ZeroDivisionError), Meter("b", 1, "rows"):
        raise ZeroDivisionError


def test_every_token_of_an_answer_is_counted(pico_path: Callable[[str], Path]) -> None:
    respondent = ModelRespondent(load_model(str(pico_path("llama")), device="cpu"))
    with Meter("answering", 3, "prompts") as meter:
        answers = respondent.answers(["a", "b", "c"], max_new_tokens=7, on_answer=meter.piece)
        assert meter.done == 3
        assert meter.tokens == sum(answer.tokens for answer in answers)
    alone = respondent.answers(["a", "b", "c"], max_new_tokens=7)
    assert alone == answers
