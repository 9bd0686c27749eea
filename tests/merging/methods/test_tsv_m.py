from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging import stack
from posttrain.merging.methods.tsv_m import TsvMConfig
from tests.merging.tensors import apart, drawn, merged


def test_by_hand() -> None:
    base = torch.ones(2, 2)
    models = [base + torch.tensor([[6.0, 0.0], [0.0, 1.0]]), base + torch.tensor([[1.0, 0.0], [0.0, -2.0]])]
    assert torch.allclose(merged(TsvMConfig(), models, base), base + torch.tensor([[6.0, 0.0], [0.0, -2.0]]))


@pytest.mark.parametrize("share", [None, 0.2])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_it_is_the_papers(shape: tuple[int, int], share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    base, *models = drawn(shape, 3)
    rank = int(min(shape) * (share or 1 / 3))
    parts = [torch.linalg.svd((model - base).double(), full_matrices=False) for model in models]
    values = torch.cat([part[1][:rank] for part in parts])
    left, _, turn = torch.linalg.svd(torch.cat([part[0][:, :rank] for part in parts], 1), full_matrices=False)
    back, _, right = torch.linalg.svd(torch.cat([part[2][:rank] for part in parts]), full_matrices=False)
    paper = base + 0.7 * ((left @ turn * values) @ (back @ right)).float()
    assert apart(merged(TsvMConfig(scale=0.7, share=share), models, base), paper) < 1e-6


def test_the_same_model_twice_is_what_it_keeps_of_it() -> None:
    base, a = drawn((20, 12), 1)
    left, values, right = torch.linalg.svd(a - base, full_matrices=False)
    kept = base + (left[:, :6] * values[:6]) @ right[:6]
    assert apart(merged(TsvMConfig(), [a, a], base), kept) < 1e-5
    assert apart(merged(TsvMConfig(), [a], base), a) < 1e-5
    assert torch.equal(merged(TsvMConfig(), [base, base], base), base)


def test_a_model_that_changed_nothing_takes_no_room() -> None:
    base, a, b = drawn((20, 12), 2)
    assert torch.equal(merged(TsvMConfig(), [a, base, b], base), merged(TsvMConfig(), [a, b], base))


def test_more_models_than_directions() -> None:
    base, *models = drawn((2, 5), 4)
    assert torch.isfinite(merged(TsvMConfig(), models, base)).all()


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_bad_options(share: float) -> None:
    with pytest.raises(ValidationError):
        TsvMConfig(share=share)
