"""Old rows: the share holds at every moment, rows come back only when all were used, the seed decides."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.mixing import OldRows, old_tokens_for

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=30)
steps = st.lists(st.integers(1, 200), min_size=1, max_size=20)
shares = st.floats(0.05, 0.97)


def test_tokens_by_hand() -> None:
    assert old_tokens_for(20, 0.9) == pytest.approx(180)  # 180 / 200
    assert old_tokens_for(30, 0.5) == pytest.approx(30)
    assert old_tokens_for(10, 0.0) == 0
    with pytest.raises(ValueError, match="share"):
        old_tokens_for(10, 1.0)


@settings(max_examples=60, deadline=None)
@given(lengths, steps, shares, st.integers(0, 5))
def test_share_is_right_to_half_a_row_at_every_moment(
    lengths: list[int], steps: list[int], share: float, seed: int
) -> None:
    old = OldRows(lengths, share=share, seed=seed)
    new_tokens = old_tokens = 0
    for tokens in steps:
        new_tokens += tokens
        old_tokens += sum(lengths[row] for row in old.draw(tokens))
        assert abs(old_tokens - share / (1 - share) * new_tokens) <= max(lengths) / 2 + 1e-6


@settings(max_examples=60, deadline=None)
@given(lengths, steps, shares, st.integers(0, 5))
def test_without_replacement_until_all_were_used(lengths: list[int], steps: list[int], share: float, seed: int) -> None:
    old = OldRows(lengths, share=share, seed=seed)
    used: Counter[int] = Counter()
    for tokens in steps:
        for row in old.draw(tokens):
            used[row] += 1
            counts = [used[i] for i in range(len(lengths))]
            assert max(counts) - min(counts) <= 1


@settings(max_examples=30, deadline=None)
@given(lengths, steps, shares)
def test_the_seed_decides(lengths: list[int], steps: list[int], share: float) -> None:
    first, again = (OldRows(lengths, share=share, seed=3) for _ in range(2))
    assert [first.draw(t) for t in steps] == [again.draw(t) for t in steps]


def test_another_seed_draws_others_and_orders_differ_between_rounds() -> None:
    rounds = {}
    for seed in (0, 1):
        old = OldRows([1] * 40, share=0.5, seed=seed)
        rounds[seed] = [old.draw(40), old.draw(40)]
    assert rounds[0][0] != rounds[1][0]
    assert rounds[0][0] != rounds[0][1]


def test_thirty_one_rows_beside_one() -> None:
    old = OldRows([20] * 500, share=31 / 32, seed=0)
    assert len(old.draw(20)) == 31


def test_nothing_to_draw() -> None:
    assert OldRows([], share=0.9, seed=0).draw(100) == []
    assert OldRows([5, 5], share=0.0, seed=0).draw(100) == []
    with pytest.raises(ValueError, match="no tokens"):
        OldRows([3, 0], share=0.5, seed=0)
