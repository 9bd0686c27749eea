"""Comparisons: arithmetic by hand, and simulated models of which the truth is known."""

import json
import time
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from pydantic import TypeAdapter

from posttrain.exams.compare import Comparison, compare, quadrants
from posttrain.exams.records import Sample


def sample(
    name: str,
    correct: bool | None,
    *,
    choices: int | None = None,
    perturbation: str = "",
    **scores: float,
) -> Sample:
    values = scores or ({} if correct is None else {"acc": float(correct)})
    return Sample(name, "", "q", "a", "t", values, correct=correct, choices=choices, perturbation=perturbation)


def answered(marks: Sequence[bool], choices: int | Sequence[int] | None = None) -> list[Sample]:
    ks = choices if isinstance(choices, Sequence) else [choices] * len(marks)
    return [marked(i, bool(right), k) for i, (right, k) in enumerate(zip(marks, ks, strict=True))]


@cache
def marked(number: int, right: bool, choices: int | None) -> Sample:
    """Made once: the simulations ask for millions."""
    return sample(str(number), right, choices=choices)


def simulate(
    generator: np.random.Generator, n: int, known: tuple[float, float, float], choices: Sequence[int]
) -> tuple[list[Sample], list[Sample]]:
    """known: shares known to both, only before, only after; the rest guess uniformly, each for itself."""
    ks = generator.choice(choices, size=n)
    states = generator.choice(4, size=n, p=[*known, 1 - sum(known)])
    before = np.isin(states, [0, 1]) | (generator.random(n) < 1 / ks)
    after = np.isin(states, [0, 2]) | (generator.random(n) < 1 / ks)
    return answered(list(before), list(map(int, ks))), answered(list(after), list(map(int, ks)))


def test_by_hand() -> None:
    """Of ten four-choice questions 3 stay right, 3 are forgotten, 1 is gained, 3 stay wrong.

    Adjusted: (3 - 3/3) * 4/3 / 10 forgotten, (1 - 3/3) * 4/3 / 10 gained; McNemar 2 (1 + 4) / 2^4.
    """
    before = answered([True] * 6 + [False] * 4, 4)
    after = answered([True] * 3 + [False] * 3 + [True] + [False] * 3, 4)
    found = compare(before, after, headline="acc")
    assert (found.n, found.score, found.unpaired, found.notes) == (10, "acc", 0, [])
    assert (found.kept_right, found.forgotten, found.gained, found.kept_wrong) == (3, 3, 1, 3)
    assert (found.before, found.after) == (0.6, 0.4)
    assert found.difference == pytest.approx(-0.2)
    assert (found.forgotten_share, found.gained_share, found.chance) == (0.3, 0.1, 0.25)
    assert found.forgotten_adjusted == pytest.approx(2 * 4 / 3 / 10)
    assert found.gained_adjusted == pytest.approx(0)
    assert found.p_value == 10 / 16
    assert (found.different, found.better) == (False, None)
    assert quadrants(before, after) == (["0|", "1|", "2|"], ["3|", "4|", "5|"], ["6|"], ["7|", "8|", "9|"])


def test_adjusted_by_hand_with_mixed_choices() -> None:
    """k = 2: (1 - 0) * 2 forgotten; k = 5: -1/4 * 5/4 for both wrong; no choices: 1. Over four samples."""
    before = answered([True, False, True, True], [2, 5, 3, 3])
    after = answered([False, False, False, True], [2, 5, 3, 3])
    free = [*before[:2], sample("2", True), before[3]], [*after[:2], sample("2", False), after[3]]
    assert compare(*free, headline="acc").forgotten_adjusted == pytest.approx((2 - 5 / 16 + 1 + 0) / 4)
    assert compare(*free, headline="acc").chance is None
    assert compare(before, after, headline="acc").forgotten_adjusted == pytest.approx((2 - 5 / 16 + 1.5) / 4)
    assert compare(before, after, headline="acc").chance == pytest.approx((1 / 2 + 1 / 5 + 2 / 3) / 4)


@pytest.mark.parametrize(
    ("marks", "rest", "few"),
    [
        (([False] * 5, [True] * 5), 0, "too few questions (5)"),
        (([False, True], [True, True]), 0, "too few questions (2)"),
        (([False] * 5, [True] * 5), 15, "too few questions differ (5)"),
        (([False] * 6, [True] * 6), 0, ""),  # six can be told
        (([False, True] * 4, [True, False] * 4), 0, ""),  # enough differ, and they cancel
        (([True] * 3, [True] * 3), 0, ""),  # nothing differs
    ],
)
def test_what_no_number_of_questions_could_tell_is_said(
    marks: tuple[list[bool], list[bool]], rest: int, few: str
) -> None:
    """An interval off 0 beside "no difference" is a riddle: five that differ can never reach p < 0.05."""
    found = compare(answered(marks[0] + [True] * rest), answered(marks[1] + [True] * rest), headline="acc")
    assert found.too_few == few
    assert found.changed == sum(a != b for a, b in zip(*marks, strict=True))


def test_other_words_with_the_same_score_are_said() -> None:
    """Where a score tells nothing, that most answers are other words than before is still seen."""

    def told(answers: str, choices: int | None = None) -> list[Sample]:
        return [Sample(str(i), "", "q", a, "t", {"f1": 0.5}, choices=choices) for i, a in enumerate(answers.split(","))]

    before = told("one,two,three,four")
    note = "3 of 4 answers are other words than before, which this score does not tell"
    assert compare(before, told("uno,dos,tres,four"), headline="f1").notes == [note]
    assert compare(before, told("uno,dos,three ,four"), headline="f1").notes == [], "half of them, and one by a space"
    assert compare(told("A,B,C,D", 4), told("B,A,D,C", 4), headline="f1").notes == [], "a choice has no words"


def test_free_answers_have_no_chance() -> None:
    found = compare(answered([True, False]), answered([False, False]), headline="acc")
    assert (found.forgotten_share, found.forgotten_adjusted, found.gained_adjusted, found.chance) == (
        0.5, None, None, None,
    )  # fmt: skip


CHOICES = ([4], [2], [2, 3, 4, 10])
KNOWN = ((0.5, 0.12, 0.05), (0.0, 0.0, 0.0), (0.0, 0.4, 0.0), (0.2, 0.0, 0.6))


@pytest.mark.parametrize(
    ("known", "choices"),
    [
        pytest.param(known, choices, marks=[pytest.mark.slow] if (i + j) % 3 else [])
        for i, known in enumerate(KNOWN)
        for j, choices in enumerate(CHOICES)
    ],
)
def test_true_forgetting_is_recovered(choices: list[int], known: tuple[float, float, float]) -> None:
    """Mean over 40 simulated pairs of models within four standard errors of the truth; the plain share is not."""
    generator = np.random.default_rng(11)
    found = [compare(*simulate(generator, 2000, known, choices), headline="acc") for _ in range(40)]
    for truth, values in (
        (known[1], [one.forgotten_adjusted for one in found]),
        (known[2], [one.gained_adjusted for one in found]),
    ):
        data = np.array(values, dtype=float)
        assert data.mean() == pytest.approx(truth, abs=4 * data.std() / np.sqrt(len(data)))
        assert data.std() < 0.05
    if known[1] == 0 and sum(known) < 1:
        assert min(one.forgotten_share or 0 for one in found) > 0.01  # guessing looks like forgetting


def test_the_net_is_the_corrected_accuracies() -> None:
    """p01 - p10 = ((A after - A before) k) / (k - 1), whatever the truth is."""
    generator = np.random.default_rng(2)
    found = compare(*simulate(generator, 500, (0.3, 0.2, 0.1), [4]), headline="acc")
    assert found.gained_adjusted is not None
    assert found.forgotten_adjusted is not None
    assert found.difference is not None
    assert found.gained_adjusted - found.forgotten_adjusted == pytest.approx(found.difference * 4 / 3)


def test_a_model_beside_itself_forgets_nothing() -> None:
    """Guesses that agree are no independent guesses: below 0, as the docstring says."""
    same = answered([True, False] * 20, 4)
    found = compare(same, same, headline="acc")
    assert (found.forgotten, found.different, found.p_value) == (0, False, 1.0)
    assert found.forgotten_adjusted is not None
    assert found.forgotten_adjusted < 0


def test_equal_models_are_called_different_in_less_than_5_percent() -> None:
    """Two models that know equally much, not the same."""
    generator = np.random.default_rng(4)
    called = [
        compare(*simulate(generator, 120, (0.2, 0.1, 0.1), [4]), headline="acc", seed=i).different for i in range(300)
    ]
    assert 0 < sum(called) <= 0.05 * 300


def test_a_true_difference_is_called_one() -> None:
    generator = np.random.default_rng(4)
    found = compare(*simulate(generator, 800, (0.3, 0.2, 0.02), [4]), headline="acc")
    assert (found.different, found.better) == (True, False)
    assert found.ci95 is not None
    assert found.ci95.high < 0


def test_few_pairs_prove_nothing() -> None:
    """Five of five got better: the percentile interval is [1, 1], but exactly that happens by chance 6 times in 100."""
    five = compare(answered([False] * 5), answered([True] * 5), headline="acc")
    assert (five.ci95, five.different) == ((1.0, 1.0), False)
    free = [[sample(str(i), None, f1=v) for i in range(5)] for v in (0.2, 0.6)]
    assert compare(*free, headline="f1").different is False
    six = compare(answered([False] * 6), answered([True] * 6), headline="acc")
    assert (six.different, six.better) == (True, True)


def test_both_tests_must_say_so() -> None:
    """Seven against one of twenty: the interval excludes 0, p = 2 (1 + 8) / 2^8 does not. And the other way round:
    ten more are right and none fewer, but the headline went up and down.
    """
    eager = compare(answered([False] * 7 + [True] * 13), answered([True] * 7 + [False] + [True] * 12), headline="acc")
    assert eager.ci95 is not None
    assert eager.ci95.low > 0
    assert (eager.p_value, eager.different) == (18 / 256, False)
    before = [sample(str(i), False, f1=0.5) for i in range(10)]
    after = [sample(str(i), True, f1=0.6 if i % 2 else 0.4) for i in range(10)]
    mixed = compare(before, after, headline="f1")
    assert (mixed.p_value, mixed.different) == (2 / 2**10, False)


def test_lower_is_better() -> None:
    before = [sample(str(i), None, cross_entropy=2.0 + i / 10) for i in range(20)]
    after = [sample(str(i), None, cross_entropy=2.3 + i / 9) for i in range(20)]
    found = compare(before, after, headline="cross_entropy", higher_is_better=False)
    assert found.difference == pytest.approx(0.3 + 9.5 * (1 / 9 - 1 / 10))
    assert (found.p_value, found.forgotten, found.different, found.better) == (None, None, True, False)
    back = compare(after, before, headline="cross_entropy", higher_is_better=False)
    assert (back.different, back.better) == (True, True)


def test_pairs_by_key_and_leaves_disturbed_ones_out() -> None:
    before = [*answered([True, True, False], 4), sample("9", True), sample("0", False, perturbation="typos")]
    after = [*reversed(answered([True, False, False], 4)), sample("0", False, perturbation="typos"), sample("x", True)]
    after = [s if s.id != "2" else sample("2", False, choices=5) for s in after]
    found = compare(before, after, headline="acc")
    assert (found.n, found.unpaired, found.forgotten) == (2, 3, 1)
    assert found.notes == [
        "1 sample is only in the answers before",
        "1 sample is only in the answers after",
        "1 sample has another number of choices after",
    ]


def test_scores_of_the_whole_data_set_fall_back_on_right_and_wrong() -> None:
    before, after = answered([True, False, True]), answered([True, True, True])
    found = compare(before, after, headline="matthews")
    assert (found.headline, found.score, found.after) == ("matthews", "correct", 1.0)
    assert "share that is right" in found.notes[0]


def test_nothing_to_compare_is_said() -> None:
    nothing = compare([], [], headline="acc")
    assert (nothing.n, nothing.before, nothing.difference, nothing.different) == (0, None, None, False)
    unmarked = compare([sample("1", None, f1=1.0)], [sample("1", None, f1=0.0)], headline="acc")
    assert unmarked.n == 0
    assert "nothing to compare" in unmarked.notes[0]
    half = [sample("1", None, f1=1.0), sample("2", None, em=1.0)]
    assert compare(half, half, headline="f1").notes == ["1 of 2 pairs have no 'f1'"]


def test_a_choice_is_between_two() -> None:
    with pytest.raises(ValueError, match="1 choices"):
        compare(answered([True], 1), answered([False], 1), headline="acc")


def test_json_there_and_back() -> None:
    kept = TypeAdapter(Comparison)
    for found in (
        compare(answered([True, False], 4), answered([False, False], 4), headline="acc"),
        compare([], [], headline="acc"),
    ):
        row = json.loads(json.dumps(kept.dump_python(found, mode="json"), allow_nan=False))
        assert kept.validate_python(row) == found


def test_seeded() -> None:
    before, after = simulate(np.random.default_rng(0), 300, (0.3, 0.1, 0.1), [4])
    assert compare(before, after, headline="acc", seed=1) == compare(before, after, headline="acc", seed=1)


def test_fourteen_thousand_samples_take_less_than_a_second() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((2, 14_000))
    before, after = ([sample(str(i), v > 0.5, choices=4, f1=v) for i, v in enumerate(row)] for row in scores)
    for headline in ("f1", "correct"):
        start = time.process_time()
        compare(before, after, headline=headline)
        assert time.process_time() - start < 1
