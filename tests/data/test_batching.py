from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.batching import OldRows, collate, length_batches, pieces
from posttrain.data.chat import IGNORED, Encoded
from posttrain.errors import DataError

LENGTHS = st.lists(st.integers(1, 64), max_size=300)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(64, 400), st.integers(0, 5), st.integers(0, 3), st.none() | st.integers(1, 9))
def test_every_row_once_and_padding_counted(
    lengths: list[int], tokens: int, seed: int, epoch: int, max_rows: int | None
) -> None:
    batches = length_batches(lengths, tokens=tokens, seed=seed, epoch=epoch, max_rows=max_rows)
    assert Counter(i for batch in batches for i in batch) == Counter(range(len(lengths)))
    for batch in batches:
        assert len(batch) * max(lengths[i] for i in batch) <= tokens
        assert max_rows is None or len(batch) <= max_rows
    assert batches == length_batches(lengths, tokens=tokens, seed=seed, epoch=epoch, max_rows=max_rows)


def test_order_changes_with_seed_and_epoch() -> None:
    lengths = [5 + i % 40 for i in range(400)]
    first = length_batches(lengths, tokens=256, seed=0, epoch=0)
    assert first != length_batches(lengths, tokens=256, seed=0, epoch=1)
    assert first != length_batches(lengths, tokens=256, seed=1, epoch=0)
    longest = [max(lengths[i] for i in batch) for batch in first]
    assert longest != sorted(longest, reverse=True)  # batches are shuffled, not in order of length


def test_little_padding_and_few_batches() -> None:
    lengths = [1 + (i * 37) % 100 for i in range(2000)]
    batches = length_batches(lengths, tokens=1000, seed=0, epoch=0)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert sum(lengths) / padded > 0.93
    assert len(batches) < 1.15 * sum(lengths) / 1000


def test_stretches_mix_rows_between_epochs() -> None:
    lengths = [10] * 1000
    first, second = (length_batches(lengths, tokens=100, seed=0, epoch=e) for e in (0, 1))
    assert {frozenset(b) for b in first}.isdisjoint({frozenset(b) for b in second})


def test_a_row_over_the_budget_is_an_error() -> None:
    with pytest.raises(DataError, match=r"1 rows are longer than a batch of 20 tokens \(row 1 has 21\).*batch.tokens"):
        length_batches([20, 21], tokens=20, seed=0, epoch=0)


def test_collate_pads_on_the_right() -> None:
    batch = collate([Encoded([5, 6, 7], [IGNORED, 6, 7], "a:1"), Encoded([8], [8], "a:2")], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), st.integers(1, 400))
def test_pieces_are_few_and_of_like_size(lengths: list[int], tokens: int) -> None:
    parts = pieces(range(len(lengths)), lengths, tokens)
    assert [i for part in parts for i in part] == list(range(len(lengths)))
    sizes = [len(part) * max(lengths[i] for i in part) for part in parts]
    assert all(size <= tokens or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    assert len(parts) >= sum(lengths) / max(tokens, *lengths)


def test_a_batch_is_halved_rather_than_clipped() -> None:
    assert [len(part) for part in pieces(range(10), [100] * 10, 900)] == [5, 5]
    assert [len(part) for part in pieces(range(10), [100] * 10, 1000)] == [10]
    assert [len(part) for part in pieces(range(3), [100] * 3, 50)] == [1, 1, 1]


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=30)
steps = st.lists(st.integers(1, 200), min_size=1, max_size=20)
shares = st.floats(0.05, 0.97)


@pytest.mark.parametrize(("new", "share", "old"), [(20, 0.9, 180), (30, 0.5, 30), (10, 0.0, 0)])
def test_old_tokens_by_hand(new: int, share: float, old: int) -> None:
    assert len(OldRows([1] * 1000, share=share, seed=0).draw(new)) == old  # 180 / 200
    with pytest.raises(ValueError, match="share"):
        OldRows([1], share=1.0, seed=0)


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
