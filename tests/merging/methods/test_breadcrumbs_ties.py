from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging.methods.breadcrumbs_ties import BreadcrumbsTiesConfig
from tests.merging.given import CASES, DENSITIES, WEIGHTS, far, made, merged, per_model
from tests.merging.oracle import mergekit


def test_by_hand() -> None:
    """Of each model the largest and the smallest go."""
    base = torch.zeros(4)
    models = [torch.tensor([9.0, 4, 3, 1]), torch.tensor([2.0, 5, -7, -6])]
    config = BreadcrumbsTiesConfig(density=0.5, gamma=0.25)
    assert merged(config, base, models).tolist() == [0, 4.5, 3, -6]
    summed = BreadcrumbsTiesConfig(density=0.5, gamma=0.25, compat="mergekit")
    assert merged(summed, base, models).tolist() == [0, 9, 3, -6]


@pytest.mark.parametrize(("shape", "models"), CASES)
@pytest.mark.parametrize("normalize", [None, True])
def test_as_mergekit(
    shape: tuple[int, ...], models: int, normalize: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for densities, gammas in (([0.3] * 3, [0.05] * 3), (DENSITIES, [0.1, 0.0, 0.5])):
        each = {"weight": WEIGHTS[:models], "density": densities[:models], "gamma": gammas[:models]}
        shared = {} if normalize is None else {"normalize": normalize}
        theirs = mergekit("breadcrumbs_ties", others, base, each, shared)
        config = BreadcrumbsTiesConfig(
            weight=per_model(WEIGHTS, models),
            density=per_model(densities, models),
            gamma=per_model(gammas, models),
            normalize=normalize,
            compat="mergekit",
        )
        assert far(merged(config, base, others), theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    assert torch.equal(merged(BreadcrumbsTiesConfig(), base, [base] * 3), base)
    assert torch.equal(merged(BreadcrumbsTiesConfig(density=1), base, [model] * 3), model)


def test_bad_options() -> None:
    with pytest.raises(ValidationError, match="is no share; give a number from 0 to 1"):
        BreadcrumbsTiesConfig(gamma=[0, 2])
