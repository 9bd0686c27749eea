"""K-FAC factors against sums written out by hand, and the projector of low curvature against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from posttrain.errors import PosttrainError
from posttrain.models._scores import row_generator
from posttrain.models.curvature import Example, fisher
from posttrain.models.kfac import flowing, kfac, low_curvature
from tests.models.test_curvature import PicoPath, double, examples

NAMES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
TOLERANCE = 1e-6
"""The norms of transformers compute in float32 whatever the weights are."""


def inputs_by_hand(model: nn.Module, name: str, rows: list[Example]) -> Tensor:
    """A alone."""
    kept: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, args, o: kept.append(args[0][0].detach()))
    keys = []
    for row in rows:
        model(input_ids=row.inputs[None])
        keys.append(kept[-1][: int(row.positions.max()) + 1])
    handle.remove()
    every = torch.cat(keys)
    return every.T @ every / len(every)


def by_hand(model: nn.Module, name: str, rows: list[Example], skip: int = 0) -> tuple[Tensor, Tensor]:
    """A and G by the double sum over positions and vocabulary, one backward pass each."""
    kept: dict[str, Tensor] = {}

    def keep(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        kept["inputs"], kept["outputs"] = args[0][0], output

    handle = model.get_submodule(name).register_forward_hook(keep)
    tokens = positions = 0
    sums: dict[str, Tensor] = {}
    for row in rows:
        logits = model(input_ids=row.inputs[None]).logits[0]
        last = int(row.positions.max())
        keys = kept["inputs"][skip : last + 1].detach()
        sums["a"], tokens = sums.get("a", 0) + keys.T @ keys, tokens + len(keys)
        for t in row.positions.tolist():
            positions += 1
            logarithms = logits[t].log_softmax(-1)
            for v in range(len(logarithms)):
                (pull,) = torch.autograd.grad(logarithms[v], kept["outputs"], retain_graph=True)
                sums["g"] = sums.get("g", 0) + logarithms[v].exp().detach() * pull[0, skip:].T @ pull[0, skip:]
    handle.remove()
    return sums["a"] / tokens, sums["g"] / positions


def with_signs(model: nn.Module, name: str, rows: list[Example], seed: int) -> Tensor:
    """G of one draw, row by row: the gradient of sum_tv e_tv sqrt(p) log p, squared token by token."""
    kept: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, o: kept.append(o))
    total, positions = torch.zeros(1, 1, dtype=torch.float64), 0
    for job, row in enumerate(rows):
        logarithms = model(input_ids=row.inputs[None]).logits[0, row.positions].log_softmax(-1)
        draw = row_generator(seed, job)
        signs = torch.randint(0, 2, tuple(logarithms.shape), generator=draw, dtype=torch.int8) * 2 - 1
        score = (signs * (0.5 * logarithms).exp().detach() * logarithms).sum()
        (pull,) = torch.autograd.grad(score, kept[-1])
        total, positions = total + pull[0].T @ pull[0], positions + len(row.positions)
    handle.remove()
    return total / positions


def close(one: Tensor, other: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(one, other, atol=tolerance * float(other.abs().max()), rtol=0)


# ---- the factors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0, 1])
def test_many_draws_give_the_double_sum(pico_path: PicoPath, skip: int) -> None:
    model, rows = double(pico_path), examples(2)
    a, g = by_hand(model, NAMES[0], rows, skip)
    few, found = (kfac(model, NAMES[:1], rows, draws=n, skip=skip, batch_tokens=4096)[NAMES[0]] for n in (16, 512))
    close(found.inputs, a)
    errors = [float((one.outputs - g).norm() / g.norm()) for one in (few, found)]
    assert errors[0] > 3 * errors[1]  # a sixth, as draws go up by 32
    assert errors[1] < 0.2
    assert float(found.outputs.trace()) == pytest.approx(float(g.trace()), rel=0.05)
    assert found.positions == sum(len(row.positions) for row in rows)
    assert found.tokens == sum(int(row.positions.max()) + 1 - skip for row in rows)


def test_rows_read_together_count_as_if_read_alone(pico_path: PicoPath) -> None:
    model, rows = double(pico_path), examples(3)
    found = kfac(model, NAMES, rows, seed=3, batch_tokens=40)
    for name in NAMES:
        close(found[name].outputs, with_signs(model, name, rows, 3))
        close(found[name].inputs, inputs_by_hand(model, name, rows))


def test_transposed_modules_count_alike(pico_path: PicoPath) -> None:
    """GPT-2's Conv1D stores its matrix as (d, D); its factors belong to inputs and outputs all the same."""
    model, rows = double(pico_path, "gpt2"), examples(2)
    name = "transformer.h.1.mlp.c_proj"
    found = kfac(model, [name], rows, seed=1)[name]
    assert len(found.inputs) > len(found.outputs)
    close(found.outputs, with_signs(model, name, rows, 1))


def test_one_position_and_one_key_are_the_fisher_information() -> None:
    """A single token: F of W is exactly A (x) G, whose diagonal is diag(G) diag(A)^T."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4, bias=False, dtype=torch.float64)
            self.keys = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)

        def forward(self, input_ids: Tensor, use_cache: bool = False) -> nn.Module:
            self.logits = self.linear(self.keys[input_ids])
            return self

    model = One()
    zero = torch.zeros(1, dtype=torch.long)
    rows = [Example(zero, zero, zero)]
    exact = fisher(model, dict(model.named_parameters()), rows, kind="true").diagonal["linear.weight"]
    found = kfac(model, ["linear"], rows, draws=20000)["linear"]
    p = model.linear(model.keys[0]).softmax(-1).detach()
    close(exact, torch.outer(p * (1 - p), model.keys[0].square()))
    close(found.outputs, torch.diag(p) - torch.outer(p, p), 0.03)
    close(torch.outer(found.outputs.diagonal(), found.inputs.diagonal()), exact, 0.03)


def test_parameters_move_as_before(pico_path: PicoPath) -> None:
    model = double(pico_path)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    was = [p.requires_grad for p in model.parameters()]
    with flowing(model, NAMES) as flows:
        assert not any(p.requires_grad for p in model.parameters())
        model(input_ids=torch.arange(10, 14)[None])
        assert flows[NAMES[0]].outputs.requires_grad
    assert [p.requires_grad for p in model.parameters()] == was
    assert all(p.grad is None for p in model.parameters())


def test_what_is_not_finite_is_named(pico_path: PicoPath) -> None:
    model = double(pico_path)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(PosttrainError, match=r"down_proj: the curvature over 2 rows is not finite"):
        kfac(model, NAMES[:1], examples(2))


# ---- the projector ----------------------------------------------------------------------------------------------------


def drawn(size: int, seed: int) -> Tensor:
    """A symmetric positive definite matrix with eigenvalues far apart."""
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]
    values = torch.tensor([2.0**-i for i in range(size)], dtype=torch.float64)
    made: Tensor = basis @ torch.diag(values) @ basis.T
    return made


def matrix(seed: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99])
def test_it_is_the_projector_of_the_eigenvectors_of_the_kronecker_product(energy: float) -> None:
    """Formed whole: the eigenvectors of G (x) A on vec(M), row by row, of the smallest eigenvalues."""
    a, g = drawn(6, 1), drawn(4, 2)
    found = low_curvature(a, g, energy)
    eigenvalues = torch.linalg.eigvalsh(torch.kron(g, a))
    down = eigenvalues.flip(0)
    rank = next(k for k in range(25) if float(down[:k].sum()) >= energy * float(down.sum()))
    assert found.rank == rank
    assert float(down[:rank].sum()) == pytest.approx(found.kept * float(down.sum()))
    left, right = found.left, found.right
    basis = torch.stack([torch.kron(left[:, i], right[:, j]) for i, j in found.free.nonzero().tolist()], 1)
    m = matrix(0)
    close(found.project(m).flatten(), basis @ (basis.T @ m.flatten()))
    quadratic = torch.einsum("ik,kl,lj,ij->", g, found.project(m), a, found.project(m))
    assert float(quadratic) <= float(eigenvalues[-rank - 1]) * float(m.square().sum()) + 1e-12


def test_it_is_idempotent_symmetric_and_leaves_protected_directions_alone() -> None:
    found = low_curvature(drawn(6, 1), drawn(4, 2), 0.9)
    m, n = matrix(1), matrix(2)
    close(found.project(found.project(m)), found.project(m), 1e-13)
    assert float((found.project(m) * n).sum()) == pytest.approx(float((m * found.project(n)).sum()), rel=1e-12)
    inside = found.left.T @ found.project(m) @ found.right
    assert float(inside[~found.free].abs().max()) < 1e-14
    close(inside[found.free], (found.left.T @ m @ found.right)[found.free], 1e-13)
    assert 0 < found.rank < 24
    assert 0.9 <= found.kept < 1


def test_no_energy_protects_nothing_and_all_of_it_whatever_counts() -> None:
    a, g = drawn(6, 1), drawn(4, 2)
    nothing = low_curvature(a, g, 0.0)
    assert nothing.rank == 0
    assert nothing.kept == 0
    close(nothing.project(matrix(3)), matrix(3), 1e-13)
    a[:, 0] = a[0] = 0  # keys never have this number: no change there costs anything
    everything = low_curvature(a, g, 1.0)
    assert everything.rank == 4 * 5
    free = torch.zeros(4, 6, dtype=torch.float64)
    free[:, 0] = matrix(3)[:, 0]
    close(everything.project(matrix(3)), free, 1e-12)
