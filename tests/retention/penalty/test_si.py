from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from posttrain.retention.penalty._base import PenaltyContext
from posttrain.retention.penalty.si import Si, SiConfig
from tests.retention.penalty.conftest import on


def learned(
    context: PenaltyContext, steps: int, rate: float, **config: float
) -> tuple[Si, dict[str, nn.Parameter], list[float]]:
    """SI beside gradient descent on a quadratic bowl; its loss before each step and after the last."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64))
    trainable = {"w": weight}
    penalty = Si(SiConfig(**config), on(context, trainable))
    stiffness = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    losses = []
    for _ in range(steps):
        loss = 0.5 * (stiffness * weight**2).sum()
        losses.append(float(loss.detach()))
        (gradient,) = torch.autograd.grad(loss, [weight])
        weight.grad = gradient * 8.0  # a loss scaler's
        penalty.observe(trainable, 1 / 8)
        penalty.add_gradients(trainable, 8.0)
        with torch.no_grad():
            weight.sub_(rate * weight.grad / 8)
        penalty.stepped(trainable)
    losses.append(float(0.5 * (stiffness * weight.detach() ** 2).sum()))
    return penalty, trainable, losses


def test_the_path_integral_is_the_fall_of_the_loss(context: PenaltyContext, told: list[str]) -> None:
    penalty, _, losses = learned(context, 4000, 1e-3)
    assert float(penalty.omega["w"].sum()) == pytest.approx(losses[0] - losses[-1], rel=2e-3)
    assert penalty.omega["w"].tolist() == pytest.approx([0.5, 6.0, 0.0], rel=2e-3)
    assert told == ["si: a first task; nothing is held, it is only recorded which parameters this task needs"]


def test_two_steps_by_hand(context: PenaltyContext) -> None:
    """w = 1, rate 0.5, gradient w: 1 -> 0.5 -> 0.25; omega = 1 x 0.5 + 0.5 x 0.25 = 0.625; moved 0.75."""
    penalty, trainable, _ = learned(context, 2, 0.5, xi=0.1)
    assert float(penalty.omega["w"][0]) == pytest.approx(0.625)
    path = context.base / "si.safetensors"
    penalty.save(trainable, path)
    left = load_file(path)
    assert float(left["importance/w"][0]) == pytest.approx(0.625 / (0.75**2 + 0.1))
    assert float(left["importance/w"][2]) == 0.0
    assert torch.equal(left["center/w"], trainable["w"].detach())


def test_harm_counts_as_zero_and_tasks_add_up(context: PenaltyContext) -> None:
    first, trainable, _ = learned(context, 2, 0.5)
    path = context.base / "si.safetensors"
    first.save(trainable, path)
    before = load_file(path)["importance/w"]
    second = Si(SiConfig(), on(context, trainable, earlier=path))
    second.omega["w"] = torch.tensor([-1.0, 2.0, 0.0], dtype=torch.float64)
    second.save(trainable, path)
    added = load_file(path)["importance/w"] - before
    assert added.tolist() == pytest.approx([0.0, 2.0 / 1e-3, 0.0])
    assert second.kept is not None
    assert Si(SiConfig(), on(context, trainable, earlier=path)).kept.tasks == 2  # type: ignore[union-attr]


def test_the_penalty_is_not_in_the_path_integral(context: PenaltyContext) -> None:
    first, trainable, _ = learned(context, 3, 0.1)
    path = context.base / "si.safetensors"
    first.save(trainable, path)
    penalty = Si(SiConfig(scale="absolute", strength=50.0), on(context, trainable, earlier=path))
    with torch.no_grad():
        trainable["w"].add_(1.0)
    trainable["w"].grad = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    penalty.observe(trainable)
    penalty.add_gradients(trainable)
    assert trainable["w"].grad[1] != 0
    with torch.no_grad():
        trainable["w"].sub_(0.5)
    penalty.stepped(trainable)
    assert penalty.omega["w"].tolist() == [0.5, 0.0, 0.0]


def test_running_sums_survive(context: PenaltyContext) -> None:
    penalty, trainable, _ = learned(context, 3, 0.1)
    other = Si(SiConfig(), on(context, copy.deepcopy(trainable)))
    other.load_state(penalty.state())
    assert torch.equal(other.omega["w"], penalty.omega["w"])
