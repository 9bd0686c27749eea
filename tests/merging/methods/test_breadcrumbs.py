from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging.methods.breadcrumbs import BreadcrumbsConfig
from tests.merging.given import CASES, DENSITIES, WEIGHTS, far, made, merged, per_model
from tests.merging.oracle import mergekit

BASE = torch.zeros(10)
MODEL = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10])


def test_by_hand() -> None:
    got = merged(BreadcrumbsConfig(density=0.3, gamma=0.2), BASE, [MODEL])
    assert got.tolist() == [0, 0, 0, 0, 0, -6, 7, -8, 0, 0]
    got = merged(BreadcrumbsConfig(density=0.3, gamma=0.2, weight=0.5, scale=2), BASE, [MODEL, MODEL])
    assert got.tolist() == [0, 0, 0, 0, 0, -12, 14, -16, 0, 0]


def test_fewer_outliers_go_where_the_rest_is_too_little() -> None:
    got = merged(BreadcrumbsConfig(density=0.9, gamma=0.2), BASE, [MODEL])
    assert got.tolist() == [*MODEL[:9].tolist(), 0]
    assert torch.equal(merged(BreadcrumbsConfig(density=1, gamma=0.2), BASE, [MODEL]), MODEL)
    assert torch.equal(merged(BreadcrumbsConfig(density=0), BASE, [MODEL]), BASE)


def test_of_equal_ones_the_first_count_as_larger() -> None:
    got = merged(BreadcrumbsConfig(density=0.5, gamma=0.25), torch.zeros(2, 4), [torch.ones(2, 4)])
    assert got.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(("shape", "models"), CASES)
def test_as_mergekit(shape: tuple[int, ...], models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for densities, gammas in (([0.3] * 3, [0.05] * 3), (DENSITIES, [0.1, 0.0, 0.5]), ([1.0, 0.1, 0.0], [0.01] * 3)):
        for normalize, scale in ((False, 1.0), (True, 0.7)):
            each = {"weight": WEIGHTS[:models], "density": densities[:models], "gamma": gammas[:models]}
            theirs = mergekit("breadcrumbs", others, base, each, {"normalize": normalize, "lambda": scale})
            config = BreadcrumbsConfig(
                weight=per_model(WEIGHTS, models),
                density=per_model(densities, models),
                gamma=per_model(gammas, models),
                normalize=normalize,
                scale=scale,
            )
            assert far(merged(config, base, others), theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    assert torch.equal(merged(BreadcrumbsConfig(), base, [base] * 3), base)
    assert torch.equal(merged(BreadcrumbsConfig(density=1, normalize=True), base, [model] * 2), model)


def test_bad_options() -> None:
    for wrong in ({"density": 1.2}, {"gamma": -1}):
        with pytest.raises(ValidationError, match="is no share; give a number from 0 to 1"):
            BreadcrumbsConfig.model_validate(wrong)
