from __future__ import annotations

from math import log

import pytest
import torch

from posttrain.merging import stack
from posttrain.merging.methods.arcee_fusion import ArceeFusionConfig
from tests.merging.oracle import mergekit
from tests.merging.tensors import SHAPES, apart, drawn, merged


def test_changes_that_stand_out_are_kept() -> None:
    base = torch.zeros(4, 2)
    model = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.1, 0.0], [log(3), 0.0]])
    # The KL divergences of the last two rows are 0.001 and 0.13; the importances are 0, but for two.
    assert torch.equal(merged(ArceeFusionConfig(), [model], base), model)
    model[:3] = torch.tensor([[0.1, 0.1], [0.1, 0.1], [0.2, 0.0]])
    kept = merged(ArceeFusionConfig(), [model], base)
    assert kept[3, 0] == model[3, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [*SHAPES, (300, 200)])
def test_it_is_mergekits(shape: tuple[int, ...], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256 if shape[0] < 100 else 5000)
    for far in (0.05, 1.0):
        base, model = drawn(shape, 1, seed=seed, far=far)
        made = merged(ArceeFusionConfig(), [model], base)
        assert apart(made, mergekit("arcee_fusion", [model], base, {}, {})) < 1e-6
        assert len(shape) == 1 or 0.01 < float((made != base).float().mean()) < 0.5


def test_the_base_is_itself() -> None:
    (a,) = drawn((64, 48), 1, base=False)
    assert torch.equal(merged(ArceeFusionConfig(), [a], a), a)
