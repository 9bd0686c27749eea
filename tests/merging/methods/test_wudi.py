from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from posttrain.merging import stack
from posttrain.merging.methods.wudi import WudiConfig
from tests.merging.tensors import apart, drawn, merged


def loss(vector: Tensor, changes: list[Tensor]) -> float:
    parts = [((vector - one).double() @ one.T.double()).square().sum() / one.double().square().sum() for one in changes]
    return float(sum(parts))


def descended(changes: list[Tensor], steps: int) -> Tensor:
    """Plain descent on the paper's loss, step by step."""
    vector: Tensor = sum(changes).double()  # type: ignore[union-attr]
    curvature: Any = sum(one.double().T @ one.double() / one.double().square().sum() for one in changes)
    rate = 1 / torch.linalg.eigvalsh(curvature)[-1]
    for _ in range(steps):
        for_each = [(vector - one) @ one.double().T @ one.double() / one.double().square().sum() for one in changes]
        vector = vector - rate * sum(for_each)
    return vector.float()


def test_task_vectors_of_different_inputs_are_added() -> None:
    base = torch.ones(2, 3)
    changes = [torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0], [0.0, 3.0, 0.0]])]
    assert torch.allclose(merged(WudiConfig(), [base + one for one in changes], base), base + sum(changes))


def test_task_vectors_of_the_same_input_are_averaged() -> None:
    base = torch.zeros(2, 3)
    models = [torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0], [4.0, 0.0, 0.0]])]
    assert torch.allclose(merged(WudiConfig(until=0), models, base), (models[0] + models[1]) / 2)


@pytest.mark.parametrize("steps", [0, 1, 7, 50])
@pytest.mark.parametrize("shape", [(40, 24), (10, 40)])
def test_the_closed_form_is_descent(shape: tuple[int, int], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    base, *models = drawn(shape, 3)
    made = merged(WudiConfig(steps=steps, until=0, scale=0.7), models, base)
    right = base + 0.7 * descended([model - base for model in models], steps)
    assert apart(made, right) < 1e-6


def test_it_ends_where_the_loss_is_near_its_minimum() -> None:
    base, *models = drawn((40, 24), 3)
    changes = [model - base for model in models]
    start, least = loss(sum(changes), changes), loss(descended(changes, 500), changes)  # type: ignore[arg-type]
    made = loss(merged(WudiConfig(until=0.1), models, base) - base, changes)
    assert 0.02 < (made - least) / (start - least) <= 0.1


def test_size_makes_no_difference() -> None:
    base, *models = drawn((24, 16), 3)
    small = merged(WudiConfig(), [1e-3 * (model - base) for model in models], base * 0)
    assert apart(small * 1e3, merged(WudiConfig(), models, base) - base) < 1e-5


def test_the_same_model_twice_is_that_model() -> None:
    base, a = drawn((24, 16), 1)
    assert apart(merged(WudiConfig(steps=100000, until=0), [a, a, a], base), a) < 1e-5
    assert torch.equal(merged(WudiConfig(), [base, base], base), base)


@pytest.mark.parametrize("given", [{"steps": -1}, {"until": 1.0}, {"until": -0.1}])
def test_bad_options(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        WudiConfig.model_validate(given)
