from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from posttrain.merging.methods._masked import dropped
from posttrain.merging.methods.dare_ties import DareTiesConfig
from tests.merging.given import CASES, DENSITIES, WEIGHTS, far, made, masks_of, merged, peft, per_model, stacked
from tests.merging.oracle import mergekit


def masks(base: Tensor, models: list[Tensor], densities: list[float]) -> list[Tensor]:
    """Return the masks that a merge with seed 7 draws, in the tensors' shape."""
    stack = stacked(base, models, seed=7)
    thin, _ = dropped(stack, densities[: len(models)], rescale="none")
    return [one.view(base.shape).float() for one in masks_of(thin, stack)]


def test_by_hand() -> None:
    """Of 6 and -2, each kept half of the time and doubled, 12 is left where both are, and one alone where it is."""
    base = torch.zeros(1, 2000)
    got = merged(DareTiesConfig(density=0.5), base, [torch.full_like(base, 6), torch.full_like(base, -2)])
    shares = {number: float((got == number).float().mean()) for number in (12, -4, 0)}
    assert sum(shares.values()) == 1
    assert shares[12] == pytest.approx(0.5, abs=0.05)
    assert shares[0] == pytest.approx(0.25, abs=0.05)
    both = merged(DareTiesConfig(density=0.5), base, [torch.full_like(base, 6), torch.full_like(base, 2)])
    assert set(both.flatten().tolist()) == {0.0, 4.0, 8.0, 12.0}


@pytest.mark.parametrize(("shape", "models"), CASES)
@pytest.mark.parametrize("normalize", [None, True, False])
def test_as_mergekit(
    shape: tuple[int, ...], models: int, normalize: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for weights, densities in (([1.0] * 3, [0.3] * 3), (WEIGHTS, DENSITIES)):
        given = iter(masks(base, others, densities))
        monkeypatch.setattr(torch, "bernoulli", lambda chances, given=given: next(given))
        each = {"weight": weights[:models], "density": densities[:models]}
        shared = {} if normalize is None else {"normalize": normalize}
        theirs = mergekit("dare_ties", others, base, each, shared)
        config = DareTiesConfig(
            weight=per_model(weights, models),
            density=per_model(densities, models),
            normalize=normalize,
            compat="mergekit",
        )
        assert far(merged(config, base, others, seed=7), theirs) < 1e-6


@pytest.mark.parametrize(("shape", "models"), CASES)
def test_as_peft(shape: tuple[int, ...], models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    given = iter(masks(base, others, [0.3] * 3))
    monkeypatch.setattr(torch, "bernoulli", lambda chances: next(given))
    theirs = base + peft().dare_ties([one - base for one in others], torch.tensor(WEIGHTS[:models]), 0.3)
    config = DareTiesConfig(density=0.3, weight=per_model(WEIGHTS, models), compat="peft")
    assert far(merged(config, base, others, seed=7), theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    for compat in ("paper", "mergekit", "peft"):
        assert torch.equal(merged(DareTiesConfig(compat=compat), base, [base] * 3), base)
    assert torch.equal(merged(DareTiesConfig(density=1), base, [model] * 3), model)


def test_bad_options() -> None:
    with pytest.raises(ValidationError, match="is no share; give a number from 0 to 1"):
        DareTiesConfig(density=-0.2)
