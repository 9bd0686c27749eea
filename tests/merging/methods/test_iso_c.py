from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging import stack
from posttrain.merging.methods._matrix import nearest_orthonormal, svd
from posttrain.merging.methods.iso_c import IsoCConfig
from tests.merging.tensors import apart, drawn, merged


def test_by_hand() -> None:
    base = torch.ones(2, 2)
    models = [base + torch.tensor([[6.0, 0.0], [0.0, 0.0]]), base + torch.tensor([[0.0, 0.0], [0.0, -2.0]])]
    assert torch.allclose(merged(IsoCConfig(), models, base), base + torch.tensor([[4.0, 0.0], [0.0, -4.0]]))


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_it_is_the_papers(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    base, a, b, c = drawn(shape, 3)
    config = IsoCConfig(weight={"0": 1.0, "1": 0.5, "2": -0.3}, scale=0.7)
    left, values, right = torch.linalg.svd((a - base) + 0.5 * (b - base) - 0.3 * (c - base), full_matrices=False)
    assert apart(merged(config, [a, b, c], base), base + 0.7 * values.mean() * (left @ right)) < 3e-6


def test_directions_that_nobody_changed_stay() -> None:
    base = torch.zeros(4, 6)
    change = torch.outer(torch.arange(1.0, 5.0), torch.ones(6))
    made = merged(IsoCConfig(), [change], base)
    assert torch.allclose(made, change / 4)


def test_other_tensors_are_averaged() -> None:
    for shape, name in (((6,), "w"), ((6, 4), "embed_tokens.weight"), ((3, 4, 5), "w")):
        base, a, b, c = drawn(shape, 3)
        config = IsoCConfig(weight={"0": 1.0, "1": 0.5, "2": 0.0}, scale=0.7)
        right = base + 0.7 * ((a - base) + 0.5 * (b - base)) / 2
        assert apart(merged(config, [a, b, c], base, name), right) < 1e-6
    base, a = drawn((6, 4), 1)
    assert apart(merged(IsoCConfig(averaged=["up"]), [a, a], base, "up_proj"), a) < 1e-6
    assert apart(merged(IsoCConfig(averaged=()), [a, a], base, "embed"), a) > 0.1


def test_the_base_is_itself() -> None:
    (a,) = drawn((64, 48), 1, base=False)
    assert torch.equal(merged(IsoCConfig(), [a, a], a), a)
    assert torch.equal(merged(IsoCConfig(weight=0.0), [a + 1, a], a), a)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_singular_values_are_exact(shape: tuple[int, int]) -> None:
    (a,) = drawn(shape, 1, base=False)
    left, values, right = svd(a)
    assert torch.allclose(values, torch.linalg.svdvals(a.double()), rtol=1e-9)
    assert torch.allclose((left * values) @ right, a.double(), atol=1e-9)
    assert torch.allclose(left.T @ left, torch.eye(24 if 24 in shape else 32, dtype=torch.float64), atol=1e-9)
    left, values, right = svd(a, 3)
    assert (left.shape, values.shape, right.shape) == ((shape[0], 3), (3,), (3, shape[1]))
    tall = a if shape[0] > shape[1] else a.T
    one, _, other = torch.linalg.svd(tall.double(), full_matrices=False)
    assert torch.allclose(nearest_orthonormal(tall), one @ other, atol=1e-9)


def test_bad_options() -> None:
    with pytest.raises(ValidationError):
        IsoCConfig.model_validate({"scale": float("nan")})
