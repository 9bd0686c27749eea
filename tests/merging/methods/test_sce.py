from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging.methods.sce import SceConfig, variance
from tests.merging.given import CASES, far, made, merged
from tests.merging.oracle import mergekit


def test_by_hand() -> None:
    """Squares 1 + 9 and 1 + 9 + 16 weight the models 10 to 26."""
    base = torch.zeros(3)
    models = [torch.tensor([1.0, -3, 0]), torch.tensor([1.0, 3, 4])]
    assert merged(SceConfig(), base, models).tolist() == pytest.approx([1, 3, 4])
    models[0][0] = 3.0
    assert merged(SceConfig(), base, models).tolist() == pytest.approx([(3 * 18 + 26) / 44, 3, 4])
    assert merged(SceConfig(scale=0.5), base, models).tolist() == pytest.approx([(3 * 18 + 26) / 88, 1.5, 2])


def test_the_largest_variances_are_selected() -> None:
    base = torch.zeros(5)
    models = [torch.tensor([5.0, 1, 1, 0, 0]), torch.tensor([5.0, 2, 4, 0.5, 6])]
    assert merged(SceConfig(select_topk=0.5), base, models).tolist()[:2] == [0, 0]
    assert merged(SceConfig(select_topk=0.5), base, models).tolist()[3:] == [0, 6]
    assert merged(SceConfig(select_topk=0), base, models).tolist() == [0] * 5


def test_small_differences_are_weighted_too_but_by_mergekit() -> None:
    base = torch.zeros(2)
    models = [torch.tensor([1e-4, 1e-4]), torch.tensor([3e-4, 3e-4])]
    assert float(merged(SceConfig(), base, models)[0]) == pytest.approx((1 + 27) / 10 * 1e-4)
    assert float(merged(SceConfig(compat="mergekit"), base, models)[0]) == pytest.approx(2e-4)


@pytest.mark.parametrize(("shape", "models"), CASES)
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_as_mergekit(shape: tuple[int, ...], models: int, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models, size)
    others[0].view(-1)[::5] = base.view(-1)[::5]
    for share in (1.0, 0.6, 0.1, 0.0):
        theirs = mergekit("sce", others, base, {}, {"select_topk": share})
        assert far(merged(SceConfig(select_topk=share, compat="mergekit"), base, others), theirs) < 1e-6
        if size == 1:
            assert far(merged(SceConfig(select_topk=share), base, others), theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    assert torch.equal(merged(SceConfig(), base, [base] * 3), base)
    for models in (1, 2, 3, 5):
        assert torch.equal(merged(SceConfig(), base, [model] * models), model)


def test_bad_options() -> None:
    with pytest.raises(ValidationError, match="is no share; give a number from 0 to 1"):
        SceConfig(select_topk=3)


def test_the_variance_of_numbers_that_are_the_same_is_zero() -> None:
    draw = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(variance(draw), draw.var(0, correction=0))
    assert not variance(draw[:1].expand(3, -1)).any()
    assert not variance(draw[:1]).any()
