"""Squares of summed signs: the same Fisher information in expectation, at the price of a pass."""

from __future__ import annotations

import pytest
import torch

from posttrain.models import curvature
from posttrain.models._scores import length_groups, sign_pull
from posttrain.models.curvature import fisher
from posttrain.models.load import load_model
from tests.models.test_curvature import NORMS, PicoPath, assert_close, double, examples, moving


def test_the_pull_is_the_gradient_of_the_signed_score() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=draw, dtype=torch.float64, requires_grad=True)
    signs = torch.randint(0, 2, (5, 7), generator=draw) * 2 - 1
    logarithms = logits.log_softmax(-1)
    ((0.5 * logarithms.detach()).exp() * signs * logarithms).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(sign_pull(logits, signs), logits.grad)


@pytest.mark.parametrize(
    ("lengths", "tokens", "least", "expected"),
    [
        ([5, 1, 4, 2], 8, 1, [[1, 3], [2], [0]]),  # 2 x 2 tokens, then 4 with 5 would be 10
        ([3, 3, 3, 3], 100, 2, [[0, 1], [2, 3]]),
        ([3, 3, 3, 3], 100, 16, [[0], [1], [2], [3]]),
        ([50], 8, 1, [[0]]),  # a row that is too long is alone
    ],
)
def test_groups(lengths: list[int], tokens: int, least: int, expected: list[list[int]]) -> None:
    assert length_groups(lengths, tokens, least) == expected


def as_large(patch: pytest.MonkeyPatch, batches: int) -> list[int]:
    """Make every model one whose gradients do not fit. The list gets the number of batches of every measurement."""
    counted: list[int] = []

    def groups(lengths: list[int], tokens: int, least: int) -> list[list[int]]:
        made = length_groups(lengths, tokens, least)
        counted.append(len(made))
        return made

    patch.setattr(curvature, "CHUNK_BYTES", 0)
    patch.setattr(curvature, "LEAST_BATCHES", batches)
    patch.setattr(curvature, "length_groups", groups)
    return counted


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_of_one_row_is_the_row(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    model, rows = double(pico_path, family), examples(5)
    singly = fisher(model, moving(model), rows, chunk_rows=1)
    counted = as_large(monkeypatch, 5)
    summed = fisher(model, moving(model), rows)
    assert (counted, summed.positions, summed.chunked) == ([5], singly.positions, True)
    assert_close(summed, singly.diagonal, NORMS)


@pytest.mark.slow
def test_rows_in_one_batch_go_to_true_as_draws_grow(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    model = double(pico_path)
    parameters, rows = moving(model, "layers.1.mlp.down_proj", "norm.weight"), examples(3)
    true = fisher(model, parameters, rows, kind="true")
    counted = as_large(monkeypatch, 1)
    monkeypatch.setattr(curvature, "BATCH_TOKENS", 100)
    errors = []
    for draws in (4, 64, 512):
        total = {name: torch.zeros_like(t) for name, t in true.diagonal.items()}
        for seed in range(draws):
            found = fisher(model, parameters, rows, seed=seed)
            for name, t in found.diagonal.items():
                total[name] += t / draws
        errors.append(sum(float((total[n] - true.diagonal[n]).abs().sum()) for n in total) / true.trace)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.1
    assert set(counted) == {1}


def test_gradients_that_were_there_are_put_back(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(pico_path("llama")), device="cpu").model.requires_grad_(True)
    parameters = moving(model, "norm.weight")
    for p in parameters.values():
        p.grad = torch.full_like(p, 3.0)
    as_large(monkeypatch, 2)
    fisher(model, parameters, examples(3))
    assert all(p.grad is not None and (p.grad == 3.0).all() for p in parameters.values())
    assert all(p.grad is None for n, p in model.named_parameters() if n not in parameters)
