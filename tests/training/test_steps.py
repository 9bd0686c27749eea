"""The plan: every new row once per pass, budgets kept, the share of old rows, the same order again."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.training.config import BatchConfig
from posttrain.training.steps import RowPlan

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(50, 200), st.integers(1, 4), st.integers(0, 3))
def test_each_pass_reads_each_row_once_within_the_budget(
    lengths: list[int], tokens: int, accumulate: int, seed: int
) -> None:
    plan = RowPlan(lengths, [], BatchConfig(tokens=tokens, accumulate=accumulate), share=0.0, seed=seed)
    first, two = plan.steps_in(1), plan.steps_in(2)
    steps = list(islice(plan, two))
    for part, epoch in ((steps[:first], 1), (steps[first:], 2)):
        assert sorted(row for step in part for micro in step.micro_batches for row in micro) == list(
            range(len(lengths))
        )
        assert part[-1].epoch == epoch
    for step in steps:
        assert 1 <= len(step.micro_batches) <= accumulate
        for micro in step.micro_batches:
            assert len(micro) * max(lengths[row] for row in micro) <= tokens


@settings(max_examples=40, deadline=None)
@given(lengths, lengths, st.sampled_from([0.5, 0.9]))
def test_old_rows_join_every_step_and_budgets_hold(new: list[int], old: list[int], share: float) -> None:
    plan = RowPlan(new, old, BatchConfig(tokens=100, rows=4), share=share, seed=1)
    plain = RowPlan(new, [], BatchConfig(tokens=100, rows=4), share=0.0, seed=1)
    both = new + old
    read_new = read_old = 0
    for mixed, alone in zip(islice(plan, 12), islice(plain, 12), strict=True):
        rows = [row for micro in mixed.micro_batches for row in micro]
        # exactly the new rows that the step would have had without replay
        assert sorted(r for r in rows if r < plan.new_rows) == sorted(r for m in alone.micro_batches for r in m)
        read_new += sum(both[r] for r in rows if r < plan.new_rows)
        read_old += sum(both[r] for r in rows if r >= plan.new_rows)
        assert abs(read_old - read_new * share / (1 - share)) <= max(old) / 2 + 1e-6
        for micro in mixed.micro_batches:
            assert len(micro) <= 4
            assert len(micro) * max(both[r] for r in micro) <= 100


def test_the_order_is_a_function_of_the_seed() -> None:
    def order(seed: int) -> list[list[list[int]]]:
        plan = RowPlan(list(range(1, 41)), [5] * 30, BatchConfig(tokens=60), share=0.5, seed=seed)
        return [step.micro_batches for step in islice(plan, 30)]

    assert order(0) == order(0)
    assert order(0) != order(1)


@pytest.mark.parametrize(("epochs", "steps"), [(0.25, 1), (0.5, 2), (1, 3), (1.5, 5), (3, 9)])
def test_part_of_a_pass_is_rounded_up(epochs: float, steps: int) -> None:
    # 12 rows of 10 tokens, 40 tokens per micro batch: 3 steps a pass
    assert RowPlan([10] * 12, [], BatchConfig(tokens=40), share=0.0, seed=0).steps_in(epochs) == steps
