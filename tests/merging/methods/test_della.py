from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.merging.methods._masked import pruned
from posttrain.merging.methods.della import DellaConfig
from posttrain.merging.values import PerModel
from tests.merging.given import CASES, WEIGHTS, far, made, masks_of, merged, per_model, stacked
from tests.merging.oracle import mergekit

CHOSEN = (([0.5] * 3, [0.2] * 3), ([0.5, 0.3, 0.8], [0.1, 0.05, 0.15]))


def masks(base: Tensor, models: list[Tensor], densities: list[float], spreads: list[float]) -> list[Tensor]:
    """Return the masks that a merge with seed 7 draws, as tables."""
    stack = stacked(base, models, seed=7)
    density: PerModel = {**per_model(densities, len(models))}
    epsilon: PerModel = {**per_model(spreads, len(models))}
    thin, _ = pruned(stack, density, epsilon, rescale="none")
    return [one.float() for one in masks_of(thin, stack)]


def test_by_hand() -> None:
    """The largest of a row stays with 0.8, the smallest with 0.4, the one between with 0.6; each divided by that."""
    base = torch.zeros(3000, 3)
    model = torch.tensor([-3.0, 1.0, 2.0]).repeat(3000, 1)
    got = merged(DellaConfig(density=0.6, epsilon=0.2), base, [model])
    for column, (value, chance) in enumerate(((-3, 0.8), (1, 0.4), (2, 0.6))):
        kept = got[:, column]
        assert sorted(set(kept.tolist())) == pytest.approx(sorted([0, value / chance]))
        assert float((kept != 0).float().mean()) == pytest.approx(chance, abs=0.04)


def test_signs_are_elected() -> None:
    base = torch.zeros(2, 50)
    got = merged(DellaConfig(density=0.5, epsilon=0), base, [torch.full_like(base, 6), torch.full_like(base, -2)])
    assert set(got.flatten().tolist()) == {12.0, -4.0, 0.0}


@pytest.mark.parametrize(("shape", "models"), CASES)
@pytest.mark.parametrize("rescale", [True, False])
def test_as_mergekit(shape: tuple[int, ...], models: int, rescale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for densities, spreads in CHOSEN:
        given = iter(masks(base, others, densities, spreads))
        monkeypatch.setattr(torch, "bernoulli", lambda chances, given=given: next(given))
        each = {"weight": WEIGHTS[:models], "density": densities[:models], "epsilon": spreads[:models]}
        theirs = mergekit("della", others, base, each, {"rescale": rescale, "lambda": 0.6})
        config = DellaConfig(
            weight=per_model(WEIGHTS, models),
            density=per_model(densities, models),
            epsilon=per_model(spreads, models),
            rescale=rescale,
            scale=0.6,
            compat="mergekit",
        )
        assert far(merged(config, base, others, seed=7), theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    for compat in ("paper", "mergekit"):
        assert torch.equal(merged(DellaConfig(compat=compat), base, [base] * 3), base)
    assert torch.equal(merged(DellaConfig(density=1), base, [model] * 3), model)
    assert torch.equal(merged(DellaConfig(density=0), base, [model] * 3), base)


def test_bad_options() -> None:
    with pytest.raises(ValidationError, match="is no share; give a number from 0 to 1"):
        DellaConfig(epsilon=2)
    base, models = made((3, 8), 2)
    with pytest.raises(ConfigError, match=r"in w density 0.9 with epsilon 0.15 .*; give less than 0.1"):
        merged(DellaConfig(density=0.9, epsilon=0.15), base, models)
