"""K-FAC: the curvature of a linear module's matrix as two small matrices. Martens & Grosse 2015, arXiv:1503.05671.

A linear module maps k_s (d,) to W k_s (D,) at every token s. Let g_s (D,) be the gradient of a score with respect to
its output at s. The Fisher information of W (see `curvature.py`) is taken apart into

    F  ~  A (x) G,     A = 1/S sum_s k_s k_s^T  (d, d),     G = 1/P sum_s E[g_s g_s^T]  (D, D)

as if k and g did not know of each other, nor the tokens of a row of each other ("expand" of Eschenhagen et al. 2023,
arXiv:2311.00636). S counts tokens and P supervised positions: F is the mean per supervised position, as in
`curvature.py`, and 1/2 tr(G M A M^T) is about the KL divergence per token between the model and itself with W + M, if
every token is supervised. It is the Gauss-Newton matrix of the cross-entropy, too, and asks for no labels.

The score is `signs` of `curvature.py`: each token of the vocabulary counts with weight sqrt(p) and a random sign. A
backward pass for a batch of rows gives the gradients of all its tokens; cross terms vanish in expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from posttrain.errors import PosttrainError, Problem
from posttrain.models._scores import IGNORED, asked_logits, length_groups, row_generator, sign_pull
from posttrain.models.added import frozen
from posttrain.models.examples import Example
from posttrain.models.logits import raised
from posttrain.models.memory import trim
from posttrain.models.meter import Meter

__all__ = ["Factors", "Flow", "LowCurvature", "flowing", "kfac", "low_curvature"]

BATCH_TOKENS = 1024
"""Largest number of padded tokens in a batch."""


class Flow(NamedTuple):
    """What a linear module read and wrote in a forward pass: inputs (B, T, d), outputs (B, T, D)."""

    inputs: Tensor
    outputs: Tensor


class Factors(NamedTuple):
    """The curvature of a matrix W (D, d): inputs A (d, d), outputs G (D, D), in float32 or finer; the tokens S and the
    supervised positions P that they were measured on.
    """

    inputs: Tensor
    outputs: Tensor
    tokens: int
    positions: int


@contextmanager
def flowing(model: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, Flow]]:
    """Within this block each forward pass leaves here what the named linear modules read and wrote. Gradients with
    respect to what they wrote can be taken (with torch.enable_grad); no parameter takes any.
    """
    seen: dict[str, Flow] = {}

    def enter(_: nn.Module, args: Any) -> Any:
        states = args[0]
        if not torch.is_grad_enabled() or states.requires_grad:
            return args
        return (states.detach().requires_grad_(), *args[1:])

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            seen[name] = Flow(args[0].detach(), output)

        return hook

    with ExitStack() as stack, frozen(model):
        for name in names:
            module = model.get_submodule(name)
            stack.enter_context(module.register_forward_pre_hook(enter))
            stack.enter_context(module.register_forward_hook(keep(name)))
        yield seen
        seen.clear()


def kfac(
    model: nn.Module,
    names: Sequence[str],
    rows: Sequence[Example],
    *,
    draws: int = 1,
    seed: int = 0,
    skip: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, Factors]:
    """Return the factors of linear modules, by name. Each must run once in a forward pass, for each token.

    names: of modules of `model`, which is in eval mode; draws: of signs for each row; skip: tokens at the start of each
    row that are left out of both sums: attention sinks, whose keys can outweigh all others. Tokens after the last
    supervised position of a row are not counted. Raise PosttrainError if a number is not finite.
    """
    asked = [row.positions[row.targets != IGNORED] for row in rows]
    ends = [int(own.max()) + 1 if len(own) else 0 for own in asked]
    tokens, positions = sum(max(end - skip, 0) for end in ends), sum(map(len, asked))
    jobs = [row for row in rows for _ in range(draws)]
    made: dict[str, Factors] = {}
    with Meter("measuring curvature", len(jobs), "rows") as meter, flowing(model, names) as flows:
        for group in length_groups([len(row.inputs) for row in jobs], batch_tokens, 1):
            own = [jobs[job] for job in group]
            found = _gradients(model, own, [(seed, job) for job in group], lambda: [flows[n].outputs for n in names])
            columns = torch.arange(max(len(row.inputs) for row in own))
            counted = torch.tensor([ends[job // draws] for job in group])
            mask = ((columns >= skip) & (columns < counted[:, None])).flatten().to(found[0].device)  # (B T,)
            for name, gradients in zip(names, found, strict=True):
                keys, pulls = (t.reshape(len(mask), t.shape[-1])[mask] for t in (flows[name].inputs, gradients))
                if name not in made:
                    zeros = (raised(keys).new_zeros(2 * [keys.shape[1]]), raised(pulls).new_zeros(2 * [pulls.shape[1]]))
                    made[name] = Factors(*zeros, tokens, positions)
                made[name].inputs.addmm_(raised(keys).T, raised(keys))
                made[name].outputs.addmm_(raised(pulls).T, raised(pulls))
            trim()
            meter.more(len(group), tokens=int(mask.sum()))
    for name, one in made.items():
        one.inputs.div_(draws * max(tokens, 1))
        one.outputs.div_(draws * max(positions, 1))
        if not bool(torch.isfinite(one.inputs).all() & torch.isfinite(one.outputs).all()):
            mend = "measure it in float32, on other rows"
            raise PosttrainError(Problem(name, f"the curvature over {len(rows)} rows is not finite", mend))
    return made


def _gradients(
    model: nn.Module, rows: Sequence[Example], seeds: Sequence[tuple[int, int]], outputs: Callable[[], list[Tensor]]
) -> tuple[Tensor, ...]:
    """Return the gradients of the rows' signed scores with respect to what the modules write in this forward pass.
    seeds: seed and job of each row's signs; outputs: what they wrote.
    """
    device = next(model.parameters()).device
    with torch.enable_grad():
        logits = asked_logits(model, rows, device)  # (N, V)
    drawn = []
    for row, own in zip(rows, seeds, strict=True):
        shape = (int((row.targets != IGNORED).sum()), logits.shape[-1])
        drawn.append(torch.randint(0, 2, shape, generator=row_generator(*own), dtype=torch.int8) * 2 - 1)
    pull = sign_pull(raised(logits), torch.cat(drawn).to(device))
    return torch.autograd.grad(logits, outputs(), pull.to(logits.dtype))


class LowCurvature(NamedTuple):
    """The changes M (D, d) of a matrix that cost little: a projector in the eigenbasis of A (x) G.

        P(M) = U_G (free * (U_G^T M U_A)) U_A^T

    left: U_G (D, D); right: U_A (d, d); free (D, d): which pairs of eigenvectors may move; kept: the share of the
    curvature that cannot be touched; rank: the number of pairs that are not free.
    """

    left: Tensor
    right: Tensor
    free: Tensor
    kept: float
    rank: int

    def project(self, change: Tensor) -> Tensor:
        """Return the part of a change that is free, in the dtype of the change. The projector is never formed."""
        left, right = self.left.to(change.dtype), self.right.to(change.dtype)
        return left @ ((left.T @ change @ right) * self.free) @ right.T


def low_curvature(inputs: Tensor, outputs: Tensor, energy: float) -> LowCurvature:
    """Return the projector that leaves the directions of highest curvature alone (CrispEdit, arXiv:2602.15823).

    The eigenvalues of A (x) G are the products of those of A and G. The fewest of them that hold the share `energy` of
    their sum, at least, are protected; 0 protects nothing. inputs: A (d, d); outputs: G (D, D). In float64.
    """
    (a, right), (g, left) = (torch.linalg.eigh(one.double()) for one in (inputs, outputs))
    products = torch.outer(g.clamp_min(0), a.clamp_min(0))  # (D, d)
    values, order = products.flatten().sort(descending=True, stable=True)
    sums = values.cumsum(0)
    total = float(sums[-1])
    rank = int((sums < energy * total).sum()) + 1 if energy > 0 and total > 0 else 0
    rank = min(rank, int((values > 0).sum()))
    free = torch.ones_like(order, dtype=torch.bool)
    free[order[:rank]] = False
    kept = float(sums[rank - 1]) / total if rank else 0.0
    return LowCurvature(left, right, free.view_as(products), kept, rank)
