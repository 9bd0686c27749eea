"""Averages over facts and what they say about layers, on made-up effects with arithmetic by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from posttrain.editing.trace_file import FactTrace
from posttrain.editing.trace_means import T975, advise, averages, mean_of, roles_of, student


def fact(*effects: Sequence[float]) -> FactTrace:
    """A fact with a token before the subject, two of the subject, one after it and the last one."""
    roles = roles_of(0, range(1, 3), 4)
    rows = ((0.0,) * len(effects[0]), *(tuple(own) for own in effects))
    return FactTrace(
        name="x", prompt="p", subject="s", form="raw", reply="r", scored="r", tokens=tuple("abcde"), roles=roles,
        noisy=(False, True, True, False, False), clean=0.9, corrupted=0.1, effects={"mlp": rows},
    )  # fmt: skip


def flat(*last_subject: float) -> FactTrace:
    zeros = [0.0] * len(last_subject)
    return fact(zeros, last_subject, zeros, zeros)


def test_roles() -> None:
    assert roles_of(0, range(1, 3), 4) == ("before", "first_subject", "last_subject", "first_after", "last")
    named = ("repeated", "before", "last_subject", "first_after", "repeated", "later", "last")
    assert roles_of(0, range(2, 3), 6, (0, 2, 4)) == named
    assert roles_of(5, range(5, 6), 5) == ("last_subject",), "the subject may be the last that is read"
    assert roles_of(2, range(2, 7), 9) == (
        "first_subject", "middle_subject", "middle_subject", "middle_subject", "last_subject", "first_after", "later", "last",
    )  # fmt: skip


def test_means_and_intervals_by_hand() -> None:
    made = averages(
        [fact([0.1, 0.2], [0.3, 0.5], [0, 0], [0, 0]), fact([0.3, 0.2], [0.5, 0.1], [0.2, 0], [0, 0])], ["mlp"]
    )
    own = made["mlp"]
    assert own["first_subject"].mean == pytest.approx((0.2, 0.2))
    assert own["last_subject"].mean == pytest.approx((0.4, 0.3))
    half = 12.7062 * (0.2 / math.sqrt(2)) / math.sqrt(2)  # t s / sqrt(N)
    assert own["last_subject"].low == pytest.approx((max(-1, 0.4 - half), max(-1, 0.3 - 2 * half)), abs=1e-6)
    assert own["last_subject"].high == (1.0, 1.0), "an effect is at most 1"
    assert own["all"].mean == pytest.approx(((0.1 + 0.3 + 0.3 + 0.5 + 0.2) / 8, (0.2 + 0.5 + 0.2 + 0.1) / 8))
    assert own["before"].mean == (0.0, 0.0)
    assert "middle_subject" not in own
    assert averages([flat(0.5)], ["mlp"])["mlp"]["last_subject"].low == ()
    assert (mean_of([0.2, 0.4]).mean, mean_of([0.2, 0.4]).low, mean_of([0.5]).low) == (0.3, 0.0, None)


def test_students_t() -> None:
    assert student(2) == T975[0] == 12.7062
    assert student(11) == 2.2281
    for n, exact in ((40, 2.0227), (61, 2.0003), (121, 1.9799), (1001, 1.9623)):
        assert student(n) == pytest.approx(exact, abs=2e-3)


def noisy(mean: Sequence[float], n: int, spread: float, seed: int = 0) -> list[FactTrace]:
    draw = np.random.default_rng(seed).normal(mean, spread, (n, len(mean)))
    return [flat(*row.tolist()) for row in draw]


def test_a_peak() -> None:
    told = advise(noisy([0.02, 0.1, 0.4, 0.15, 0.02, 0.0], 12, 0.05), 1)
    assert told is not None
    assert (told.verdict, told.layer, told.layers, told.band, told.alike) == ("peak", 2, (2,), (2,), (2,))
    assert told.low is not None
    assert 0.3 < told.low < told.mean < 0.5
    wide = advise(noisy([0] * 3 + [0.1, 0.2, 0.4, 0.35, 0.3] + [0] * 16, 12, 0.02), 3)
    assert wide is not None
    assert (wide.layers, wide.band) == ((5,), (3, 4, 5, 6))


def test_windows_with_layer_0_are_not_counted() -> None:
    """They restore what the token is."""
    effects = [0.5] * 6 + [0.2, 0.15] + [0.0] * 22
    told = advise(noisy(effects, 12, 0.02), 10)
    assert told is not None
    assert (told.layer, told.layers, told.band, told.left_out) == (6, (6,), (4, 5, 6, 7, 8), 6)
    assert told.first == pytest.approx(0.5, abs=0.03)
    only = advise(noisy([0.5] + [0.0] * 5, 12, 0.02), 1)
    assert only is not None
    assert (only.verdict, only.left_out) == ("none", 1)
    assert only.first == pytest.approx(0.5, abs=0.03)


def test_no_layer_is_recommended_if_every_window_holds_layer_0() -> None:
    for facts in (noisy([0.5, 0.1], 12, 0.02), [flat(0.5, 0.1)]):
        every = advise(facts, 10)
        assert every is not None
        assert (every.verdict, every.layers, every.band, every.layer, every.left_out) == ("none", (), (), 0, 2)
        assert every.first == every.mean == pytest.approx(0.5, abs=0.03)
        assert every.reason.startswith("every window holds layer 0, and none is counted: trace with a smaller one")
    alone = advise([flat(0.5)], 1)
    assert alone is not None
    assert (alone.verdict, alone.reason) == ("none", "the model has no layer above layer 0")


def test_two_layers_that_are_alike() -> None:
    told = advise(noisy([0.0, 0.3, 0.31, 0.0, 0.0, 0.0], 12, 0.1), 1)
    assert told is not None
    assert told.verdict == "peak"
    assert set(told.alike) == {1, 2}


def test_no_peak() -> None:
    """The largest of thirty means of noise is often above zero by its own interval, and seldom by that of all layers."""
    own = peaks = 0
    for seed in range(40):
        told = advise(noisy([0.0] * 30, 8, 0.1, seed), 1)
        assert told is not None
        assert told.low is not None
        own += told.low > 0
        peaks += told.verdict == "peak"
    assert own > 8
    assert peaks <= 4
    assert told is not None
    assert told.reason == "no layer's effect is above zero once it counts that the largest was chosen among all"
    assert told.layers == ()


def test_few_facts_are_a_hint_if_the_effect_is_large() -> None:
    """The total effect is 0.8, so that the least hint is 0.08."""
    told = advise(noisy([0.0, 0.4, 0.0], 3, 0.01), 1)
    assert told is not None
    assert (told.verdict, told.layers, told.band) == ("hint", (1,), (1,))
    assert told.reason == "fewer than 5 facts say nothing for sure"
    one = advise([flat(0.1, 0.081)], 1)
    assert one is not None
    assert (one.verdict, one.low, one.n, one.reason) == ("hint", None, 1, "one fact says nothing for sure")
    least = "that is less than 10 % of the total effect of 0.800: too little"
    for effects, why in (
        ([flat(0.1, 0.079)], f"{least} to go by one fact"),
        ([flat(0.9, 0.0001)], f"{least} to go by one fact"),
        ([flat(-0.1, -0.2)], "no layer that is counted brings anything back"),
        ([flat(0.1, 0.07)] * 3, f"{least} for fewer than 5 facts"),
        ([flat(0.1, 0.1), flat(0.1, 0.5)], "the interval over 2 facts contains 0"),
    ):
        none = advise(effects, 1)
        assert none is not None
        assert (none.verdict, none.layers, none.band, none.reason) == ("none", (), (), why)


def test_a_sure_effect_of_nothing_is_not_recommended() -> None:
    told = advise([flat(0.0, 0.039)] * 6, 1)
    assert told is not None
    assert (told.verdict, told.layers, told.low) == ("none", (), 0.039)
    assert told.reason == "that is less than 5 % of the total effect of 0.800: too little to choose a layer by"
    assert advise([flat(0.0, 0.041)] * 6, 1).verdict == "peak"  # type: ignore[union-attr]


def test_effects_that_are_all_alike_have_no_spread() -> None:
    told = advise([flat(0.0, 0.2, 0.0)] * 6, 1)
    assert told is not None
    assert (told.verdict, told.layer) == ("peak", 1)
    assert advise([flat(0.0, 0.0)] * 6, 1).verdict == "none"  # type: ignore[union-attr]


def test_without_mlp_there_is_no_advice() -> None:
    bare = flat(0.1, 0.2)
    assert advise([bare.model_copy(update={"effects": {"state": bare.effects["mlp"]}})], 1) is None
