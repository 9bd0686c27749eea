from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging.methods.ram import RamConfig
from tests.merging.given import CASES, far, made, merged
from tests.merging.oracle import mergekit


def test_by_hand() -> None:
    base = torch.ones(4)
    models = [torch.tensor([3.0, 1, 5, 1.001]), torch.tensor([2.0, 4, 1, 1])]
    assert merged(RamConfig(epsilon=0.01), base, models).tolist() == [2.5, 4, 5, 1]
    assert merged(RamConfig(epsilon=0.01, scale=2), base, models).tolist() == [4, 7, 9, 1]


@pytest.mark.parametrize(("shape", "models"), CASES)
def test_as_mergekit(shape: tuple[int, ...], models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for epsilon in (1e-5, 0.5, 1.5):
        theirs = mergekit("ram", others, base, {}, {"epsilon": epsilon})
        assert far(merged(RamConfig(epsilon=epsilon), base, others), theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    assert torch.equal(merged(RamConfig(), base, [base] * 3), base)
    for models in (1, 2, 3, 5):
        assert torch.equal(merged(RamConfig(epsilon=0), base, [model] * models), model)


def test_bad_options() -> None:
    with pytest.raises(ValidationError):
        RamConfig(epsilon=-1)
