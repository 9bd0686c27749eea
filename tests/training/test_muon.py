"""Muon: orthogonal steps of the right size for matrices; for the rest exactly torch's AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.training.config import OptimizerConfig
from posttrain.training.muon import Muon, muon_for, orthogonalised
from tests.training.tiny import PicoPath, load


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 16, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonalised(matrices)
    assert found.shape == matrices.shape
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    assert values.median() > 0.6
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ found @ v.mT  # diagonal when the singular vectors are the same
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-3


def test_the_rest_is_adamw() -> None:
    torch.manual_seed(0)
    start = [torch.randn(5), torch.randn(4, 3)]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    muon = Muon([{"params": ours}], **settings)  # type: ignore[arg-type]  # one dict of several types
    adamw = torch.optim.AdamW(theirs, **settings)  # type: ignore[arg-type]  # one dict of several types
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        muon.step()
        adamw.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_first_step_of_a_matrix_by_hand() -> None:
    # One momentum step from zero leaves the gradient's direction: the step is 0.2 sqrt(4) times the orthogonal factor
    # of the gradient, here (singular value 2 on one axis each) the matrix of signs itself.
    weight = nn.Parameter(torch.zeros(2, 4))
    weight.grad = torch.tensor([[2.0, 0, 0, 0], [0, -2.0, 0, 0]])
    Muon([{"params": [weight], "muon": True}], lr=0.1).step()
    size = 0.1 * 0.2 * 2
    expected = orthogonalised(torch.tensor([[[1.0, 0, 0, 0], [0, -1.0, 0, 0]]]))[0]
    assert torch.allclose(weight.detach(), -size * expected, atol=1e-6)
    assert 0.6 < float(expected[0, 0]) < 1.3


def test_which_parameters_are_matrices(pico_path: PicoPath) -> None:
    model = load(pico_path).model
    optimizer = muon_for(model, 1e-2, OptimizerConfig(betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{names[id(p)].split(".")[-2] for p in group["params"]} for group in optimizer.param_groups]
    assert groups[0] == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert groups[1] == {"embed_tokens"}
    assert groups[2] == {"input_layernorm", "post_attention_layernorm", "norm"}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    with pytest.raises(ValueError, match="matrices only"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "muon": True}], lr=1.0)
