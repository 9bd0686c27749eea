from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.merging.methods.della_linear import DellaLinearConfig
from tests.merging.given import CASES, WEIGHTS, far, made, merged, per_model
from tests.merging.methods.test_della import CHOSEN, masks
from tests.merging.oracle import mergekit


def test_by_hand() -> None:
    base = torch.zeros(3000, 2)
    model = torch.tensor([-3.0, 1.0]).repeat(3000, 1)
    got = merged(DellaLinearConfig(density=0.5, epsilon=0.25, weight=2), base, [model])
    assert set(got[:, 0].tolist()) == {-8, 0}
    assert set(got[:, 1].tolist()) == {0, 8}
    assert float(got.mean()) == pytest.approx(-2, abs=0.15)
    plain = merged(DellaLinearConfig(density=0.5, epsilon=0.25, rescale=False), base, [model])
    assert set(plain.flatten().tolist()) == {-3, 0, 1}


@pytest.mark.parametrize(("shape", "models"), CASES)
@pytest.mark.parametrize("rescale", [True, False])
def test_as_mergekit(shape: tuple[int, ...], models: int, rescale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for densities, spreads in CHOSEN:
        given = iter(masks(base, others, densities, spreads))
        monkeypatch.setattr(torch, "bernoulli", lambda chances, given=given: next(given))
        each = {"weight": WEIGHTS[:models], "density": densities[:models], "epsilon": spreads[:models]}
        theirs = mergekit("della_linear", others, base, each, {"rescale": rescale, "normalize": True})
        config = DellaLinearConfig(
            weight=per_model(WEIGHTS, models),
            density=per_model(densities, models),
            epsilon=per_model(spreads, models),
            rescale=rescale,
            normalize=True,
            compat="mergekit",
        )
        assert far(merged(config, base, others, seed=7), theirs) < 1e-6


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    for compat in ("paper", "mergekit"):
        assert torch.equal(merged(DellaLinearConfig(compat=compat), base, [base] * 3), base)
    assert torch.equal(merged(DellaLinearConfig(density=1, normalize=True), base, [model] * 2), model)


def test_bad_options() -> None:
    base, models = made((3, 8), 2)
    with pytest.raises(ConfigError, match=r"give less than 0.2"):
        merged(DellaLinearConfig(density=0.2, epsilon=0.2), base, models)
