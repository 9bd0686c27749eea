from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from posttrain.merging import stack
from posttrain.merging.methods.resmerge import ResmergeConfig
from tests.merging.tensors import apart, drawn, merged

NAME = "layers.0.mlp.up_proj.weight"


def by_definition(changes: list[Tensor], score_counts: bool) -> Tensor:
    """The paper's formulas, on whole matrices in float64."""

    def cosine(one: Tensor, other: Tensor) -> float:
        return float((one * other).sum() / one.norm() / other.norm())

    def pairs(of: list[Tensor]) -> list[float]:
        return [cosine(one, other) for i, one in enumerate(of) for other in of[:i]] or [1.0]

    heads, rests = [], []
    for change in changes:
        left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
        heads.append(values[0] * torch.outer(left[:, 0], right[0]))
        rests.append(change.double() - heads[-1])
    units = torch.stack([rest / rest.norm() for rest in rests])
    shared = units.sum(0) / units.sum(0).norm()
    agreed = sum(cosine(rest, shared) for rest in rests) / len(rests)
    backbone: Tensor = torch.stack(rests).mean(0)
    if agreed > len(rests) ** -0.5:
        signs = pairs(rests)
        score = ((sum(signs) / len(signs) + 1) / 2 + (agreed + 1) / 2) / 2 * score_counts
        lengths = torch.stack([rest.norm() for rest in rests])
        backbone = shared * agreed ** (1.0 - 0.3 * score) * lengths.mean()
    signs = [max(one, 0.0) for one in pairs(heads)]
    head = torch.stack(heads).mean(0)
    backbone = backbone + 0.2 * sum(signs) / len(signs) * backbone.norm() * head / head.norm()
    return backbone.float()


@pytest.mark.parametrize("together", [0.0, 0.5, 2.0, -0.5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_is_the_papers(count: int, together: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 256)
    base, common, *models = drawn((40, 24), count + 1)
    models = [model + together * (common - base) for model in models[:-1]] + [models[-1] + abs(together) * common]
    for name in (NAME, "w"):
        made = merged(ResmergeConfig(), models, base, name)
        assert apart(made, base + by_definition([model - base for model in models], name == NAME)) < 1e-6


def test_leading_directions_that_conflict_are_left_out() -> None:
    rest = torch.diag(torch.tensor([0.0, 1.0, 1.0]))
    head = torch.diag(torch.tensor([5.0, 0.0, 0.0]))
    zero = torch.zeros(3, 3)
    assert torch.allclose(merged(ResmergeConfig(), [rest + head, rest - head], zero), rest, atol=1e-6)
    alike = merged(ResmergeConfig(), [rest + head, rest + head], zero)
    assert torch.allclose(alike, rest + 0.2 * 2**0.5 * head / 5, atol=1e-6)


def test_the_base_is_itself() -> None:
    (a,) = drawn((24, 16), 1, base=False)
    assert torch.equal(merged(ResmergeConfig(), [a, a], a), a)


@pytest.mark.parametrize("given", [{"leading": 0}, {"rho": -1}, {"beta_min": -0.1}])
def test_bad_options(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ResmergeConfig.model_validate(given)
