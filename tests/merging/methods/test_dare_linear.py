from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from posttrain.merging.methods._masked import dropped
from posttrain.merging.methods.dare_linear import DareLinearConfig
from tests.merging.given import CASES, DENSITIES, WEIGHTS, far, made, masks_of, merged, peft, per_model, stacked
from tests.merging.oracle import mergekit


def masks(base: Tensor, models: list[Tensor], densities: list[float]) -> list[Tensor]:
    """Return the masks that a merge with seed 7 draws, in the tensors' shape."""
    stack = stacked(base, models, seed=7)
    thin, _ = dropped(stack, densities[: len(models)], rescale="none")
    return [one.view(base.shape).float() for one in masks_of(thin, stack)]


def test_what_stays_is_divided_by_the_density() -> None:
    base, model = torch.ones(1, 1000), torch.full((1, 1000), 3.0)
    got = merged(DareLinearConfig(density=0.25, weight=0.5), base, [model])
    assert set(got.flatten().tolist()) == {1.0, 5.0}
    assert abs(float((got == 5).float().mean()) - 0.25) < 0.05
    plain = merged(DareLinearConfig(density=0.25, rescale=False), base, [model])
    assert torch.equal(plain, torch.where(got == 5, 3.0, 1.0))


def test_the_norm_stays_for_mergekit() -> None:
    base, (model,) = made((40, 30), 1)
    got = merged(DareLinearConfig(density=0.4, compat="mergekit"), base, [model])
    assert float((got - base).abs().sum()) == pytest.approx(float((model - base).abs().sum()), rel=1e-5)


def test_a_seed_decides_the_mask() -> None:
    base, models = made((40, 30), 2)
    config = DareLinearConfig(density=0.4)
    assert torch.equal(merged(config, base, models, 3), merged(config, base, models, 3))
    assert not torch.equal(merged(config, base, models, 3), merged(config, base, models, 4))


@pytest.mark.parametrize(("shape", "models"), CASES)
@pytest.mark.parametrize("rescale", [True, False])
def test_as_mergekit(shape: tuple[int, ...], models: int, rescale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for weights, densities in (([1.0] * 3, [0.3] * 3), (WEIGHTS, DENSITIES), (WEIGHTS, [1.0, 0.5, 0.0])):
        drawn = masks(base, others, densities)
        given = iter([mask for mask, density in zip(drawn, densities, strict=False) if density < 1])
        monkeypatch.setattr(torch, "bernoulli", lambda chances, given=given: next(given))
        each = {"weight": weights[:models], "density": densities[:models]}
        theirs = mergekit("dare_linear", others, base, each, {"rescale": rescale, "normalize": True, "lambda": 0.6})
        config = DareLinearConfig(
            weight=per_model(weights, models),
            density=per_model(densities, models),
            rescale=rescale,
            normalize=True,
            scale=0.6,
            compat="mergekit",
        )
        assert far(merged(config, base, others, seed=7), theirs) < 1e-6


@pytest.mark.parametrize(("shape", "models"), CASES)
def test_as_peft(shape: tuple[int, ...], models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    given = iter(masks(base, others, [0.3] * 3))
    monkeypatch.setattr(torch, "bernoulli", lambda chances: next(given))
    theirs = base + peft().dare_linear([one - base for one in others], torch.tensor(WEIGHTS[:models]), 0.3)
    ours = merged(DareLinearConfig(density=0.3, weight=per_model(WEIGHTS, models)), base, others, seed=7)
    assert far(ours, theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    for compat in ("paper", "mergekit"):
        assert torch.equal(merged(DareLinearConfig(compat=compat), base, [base] * 3), base)
    assert torch.equal(merged(DareLinearConfig(density=1, normalize=True), base, [model] * 2), model)


def test_bad_options() -> None:
    with pytest.raises(ValidationError, match="is no share; give a number from 0 to 1"):
        DareLinearConfig(density=1.2)
    with pytest.raises(ValidationError):
        DareLinearConfig.model_validate({"compat": "peft"})
