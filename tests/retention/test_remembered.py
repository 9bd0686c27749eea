"""The divergence from what was remembered: by hand, against the whole one, and at its ends."""

from __future__ import annotations

from math import log

import pytest
import torch

from posttrain.inference.divergence import kl_nats, log_probabilities
from posttrain.retention.remembered import divergence_from, remember


def drawn(seed: int, places: int = 5, vocabulary: int = 30) -> torch.Tensor:
    return 2 * torch.randn(places, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    """base 1/2, 1/4, 1/8, 1/8; model 1/4, 1/4, 1/4, 1/4; the likeliest two are kept, the rest weighs 1/4 and 1/2."""
    base = torch.tensor([[1 / 2, 1 / 4, 1 / 8, 1 / 8]], dtype=torch.float64).log()
    before = remember(base, 2)
    assert before.tokens.tolist() == [[0, 1]]
    assert before.rest.tolist() == pytest.approx([log(1 / 4)])
    expected = 1 / 2 * log(2) + 1 / 4 * log(1) + 1 / 4 * log((1 / 4) / (1 / 2))
    assert divergence_from(before, torch.zeros(1, 4, dtype=torch.float64)).item() == pytest.approx(expected)


def test_it_is_never_more_than_the_whole_and_all_of_it_with_every_token() -> None:
    base, model = drawn(0), drawn(1)
    whole = kl_nats(log_probabilities(base), log_probabilities(model))
    found = [divergence_from(remember(base, k), model) for k in (1, 4, 16, 29)]
    assert all(bool((one <= other + 1e-12).all()) for one, other in zip(found, [*found[1:], whole], strict=True))
    assert found[-1].tolist() == pytest.approx(whole.tolist())  # one token left: the rest is that token


def test_it_is_the_whole_where_the_others_keep_their_proportions() -> None:
    base = drawn(2)
    before = remember(base, 3)
    model = base.scatter_add(-1, before.tokens.long(), torch.full((5, 3), 0.7, dtype=torch.float64))
    whole = kl_nats(log_probabilities(base), log_probabilities(model))
    assert divergence_from(before, model).tolist() == pytest.approx(whole.tolist())


def test_nothing_moved_is_nothing_lost() -> None:
    base = drawn(3).float().requires_grad_(True)
    lost = divergence_from(remember(base.detach(), 8), base)
    assert lost.tolist() == [0.0] * 5
    lost.sum().backward()  # type: ignore[no-untyped-call]
    assert base.grad is not None
    assert base.grad.abs().max() < 1e-6


def test_the_gradient_is_that_of_the_formula() -> None:
    """Against autograd on the formula as it is written, over more places than are worked out together."""
    logits = drawn(6, places=300).requires_grad_(True)
    plain = logits.detach().clone().requires_grad_(True)
    before = remember(drawn(7, places=300), 5)
    weights = torch.linspace(0.5, 2, 300, dtype=torch.float64)
    (weights * divergence_from(before, logits)).sum().backward()  # type: ignore[no-untyped-call]
    q = torch.softmax(plain, -1).gather(-1, before.tokens.long())
    p, left = before.logps.exp(), before.rest.exp()
    nats = (p * (p.log() - q.log())).sum(-1) + left * (left.log() - (1 - q.sum(-1)).log())
    (weights * nats).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert plain.grad is not None
    assert float((logits.grad - plain.grad).abs().max()) < 1e-12


def test_a_rest_without_mass_is_finite() -> None:
    sure = torch.tensor([[200.0, 0.0, 0.0, 0.0]])
    moved = torch.tensor([[0.0, 0.0, 0.0, 200.0]], requires_grad=True)
    lost = divergence_from(remember(sure, 1), moved)
    lost.sum().backward()  # type: ignore[no-untyped-call]
    assert lost.item() == pytest.approx(200.0, rel=1e-4)
    assert moved.grad is not None
    assert bool(moved.grad.isfinite().all())
