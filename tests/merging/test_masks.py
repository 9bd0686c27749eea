from __future__ import annotations

import torch

from posttrain.merging.masks import SPAN, drop_, numbers
from tests.merging.given import stacked

ONE = stacked(torch.zeros(4, 3), [torch.zeros(4, 3)] * 2)


def test_numbers_depend_on_what_they_are_for() -> None:
    same = numbers(ONE, 0, 0, 1000)
    assert torch.equal(same, numbers(stacked(torch.zeros(9), [torch.ones(9)]), 0, 0, 1000))
    others = [numbers(ONE, 1, 0, 1000), numbers(ONE, 0, 64, 1000), numbers(stacked(*_two(), seed=1), 0, 0, 1000)]
    assert all(not torch.equal(same, other) for other in others)
    assert int(same.min()) >= 0
    assert int(same.max()) < SPAN


def _two() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.zeros(4, 3), [torch.zeros(4, 3)] * 2


def test_the_stream_is_pinned() -> None:
    """Whoever changes how masks are drawn changes every merge that has one."""
    assert numbers(ONE, 0, 0, 3).tolist() == [160493978, 86930467, 1411083201]


def test_a_share_is_kept() -> None:
    for density in (0.0, 0.1, 0.75, 1.0):
        values = drop_(torch.ones(100_001), numbers(ONE, 0, 0, 100_001), density)
        assert abs(float(values.mean()) - density) < 0.006
        assert set(values.tolist()) <= {0.0, 1.0}
