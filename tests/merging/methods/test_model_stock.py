from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging import stack
from posttrain.merging.methods.model_stock import ModelStockConfig
from tests.merging.oracle import mergekit
from tests.merging.tensors import SHAPES, apart, drawn, merged


def test_by_hand() -> None:
    base = torch.tensor([1.0, 1.0])
    models = [base + torch.tensor([2.0, 0.0]), base + torch.tensor([1.0, 3**0.5])]  # 60 degrees: t = 2/3
    mean = base + torch.tensor([1.5, 3**0.5 / 2])
    assert torch.allclose(merged(ModelStockConfig(), models, base), base + 2 / 3 * (mean - base))


def test_changes_at_right_angles_give_the_base_and_opposite_ones_too() -> None:
    base = torch.tensor([1.0, 1.0])
    for other in (torch.tensor([0.0, 5.0]), torch.tensor([-2.0, 0.0])):
        assert torch.equal(merged(ModelStockConfig(), [base + torch.tensor([2.0, 0.0]), base + other], base), base)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("compat", ["paper", "mergekit"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_mergekits(shape: tuple[int, ...], compat: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    base, *models = drawn(shape, count)
    models[1] += 0.7 * (models[0] - base)
    made = merged(ModelStockConfig(compat=compat), models, base)
    assert apart(made, mergekit("model_stock", models, base, {}, {})) < 1e-6
    if compat == "mergekit" or len(shape) < 3:
        made = merged(ModelStockConfig(compat=compat, per="row"), models, base)
        assert apart(made, mergekit("model_stock", models, base, {}, {"filter_wise": True})) < 1e-6


def test_small_changes_are_drawn_to_the_base_by_mergekit_alone() -> None:
    base, one, other = drawn((16, 16), 2, far=1e-5)
    change = (one - base) + (other - base)
    one, other = base + change, base + change + (other - base)
    for per, flag in (("tensor", False), ("row", True)):
        right = mergekit("model_stock", [one, other], base, {}, {"filter_wise": flag})
        like = merged(ModelStockConfig(compat="mergekit", per=per), [one, other], base)
        paper = merged(ModelStockConfig(per=per), [one, other], base)
        assert apart(like, right) < 1e-6
        assert float((like - base).norm()) < 0.3 * float((paper - base).norm())


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_the_same_models_are_that_model(per: Any) -> None:
    base, a = drawn((64, 48), 1, far=0.01)
    assert torch.equal(merged(ModelStockConfig(per=per), [a, a, a], base), a)
    assert torch.equal(merged(ModelStockConfig(per=per), [base, base], base), base)


def test_bad_options() -> None:
    with pytest.raises(ValidationError):
        ModelStockConfig.model_validate({"per": "column"})
