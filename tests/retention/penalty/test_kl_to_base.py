"""The divergence from the model before training: by hand, in training, and the same however a step is cut."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from posttrain.errors import ConfigError
from posttrain.retention.penalty.kl_to_base import KlToBaseConfig, kl_to_base
from posttrain.training.run import train
from posttrain.training.steps import RowPlan, StepRows
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights

NOW = torch.tensor([[[1.0, 3.0], [1.0, 1.0]], [[1.0, 3.0], [1.0, 3.0]]], dtype=torch.float64).log()
BASE = torch.tensor([[[1.0, 1.0], [1.0, 9.0]], [[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64).log()
TARGETS = torch.tensor([[0, -100], [0, 1]])
OLD = torch.tensor([False, True])
FORWARD = 0.5 * log(4 / 3)  # base 1/2, 1/2; now 1/4, 3/4
REVERSE = 0.25 * log(1 / 2) + 0.75 * log(3 / 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [FORWARD, 2 * FORWARD]),
        ({"weight": 0.3}, [0.3 * FORWARD, 0.6 * FORWARD]),
        ({"direction": "reverse"}, [REVERSE, 2 * REVERSE]),
        ({"on": "new"}, [FORWARD, 0.0]),
        ({"on": "old"}, [0.0, 2 * FORWARD]),
    ],
)
def test_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    assert kl_to_base(NOW, BASE, TARGETS, OLD, KlToBaseConfig(**settings)).tolist() == pytest.approx(expected)


def test_the_gradient_pulls_back() -> None:
    logits = NOW.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(kl_to_base(logits, BASE, TARGETS, OLD, KlToBaseConfig()).sum(), logits)
    assert gradient[0, 0].tolist() == pytest.approx([0.25 - 0.5, 0.75 - 0.5])  # p_now - p_base
    assert gradient[0, 1].tolist() == [0.0, 0.0]  # not asked


def plan(monkeypatch: pytest.MonkeyPatch, steps: list[list[list[int]]]) -> None:
    def planned(self: RowPlan) -> Iterator[StepRows]:
        return iter([StepRows(micro_batches, float(i + 1)) for i, micro_batches in enumerate(steps)])

    monkeypatch.setattr(RowPlan, "__iter__", planned)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_in_training(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, tuner: str) -> None:
    """Exactly 0 before anything has moved; then the mean over the step's tokens, as the two models give it."""
    loaded, untouched = load(pico_path), load(pico_path).model
    data = rows(3)
    plan(monkeypatch, [[[0, 1], [2]]] * 2)
    penalty = {"kind": "kl_to_base", "weight": 2.0}
    optimizer = {"max_steps": 1, "learning_rate": 0.05}
    seen = Remembers()
    trained = train(config(tuner=tuner, penalty=penalty, optimizer=optimizer), loaded=loaded, rows=data, progress=seen)
    assert seen.entries[0]["penalty_kl_to_base"] == 0.0
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in data:
            ids = torch.tensor([row.input_ids])
            asked = torch.tensor(row.labels)[1:] != -100
            now = log_softmax(trained.model(input_ids=ids).logits[0, :-1][asked], -1)
            before = log_softmax(untouched(input_ids=ids).logits[0, :-1][asked], -1)
            total += float((before.exp() * (before - now)).sum())
            tokens += int(asked.sum())
    assert total > 0
    again = Remembers()
    loaded = load(pico_path)
    train(
        config(tuner=tuner, penalty=penalty, optimizer=optimizer | {"max_steps": 2}),
        loaded=loaded,
        rows=data,
        progress=again,
    )
    assert again.entries[1]["penalty_kl_to_base"] == pytest.approx(2.0 * total / tokens, rel=1e-4)


def test_accumulated_equals_whole(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(4)
    results = []
    for cut in ([[0, 1, 2, 3]], [[0], [3, 1], [2]]):
        plan(monkeypatch, [cut] * 3)
        loaded = load(pico_path)
        loaded.model.double()
        seen = Remembers()
        trained = train(
            config(
                penalty={"kind": "kl_to_base", "weight": 3.0},
                optimizer={"max_steps": 3, "epsilon": 1e-3, "learning_rate": 1e-2},
            ),
            loaded=loaded,
            rows=data,
            progress=seen,
        )
        results.append((weights(trained.model), [e["penalty_kl_to_base"] for e in seen.entries]))
    (one, values), (other, others) = results
    assert values == pytest.approx(others, rel=1e-9)
    assert values[2] > 0
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < 1e-12


def test_it_holds_the_model_back(pico_path: PicoPath) -> None:
    moved = []
    choices: list[Any] = [[], {"kind": "kl_to_base", "weight": 100.0}]
    for penalty in choices:
        loaded = load(pico_path)
        seen = Remembers()
        train(
            config(penalty=penalty, optimizer={"max_steps": 5, "learning_rate": 1e-2}),
            loaded=loaded,
            rows=rows(4),
            progress=seen,
        )
        moved.append(seen.entries[-1]["loss_new_nats"] - sum(v for k, v in seen.entries[-1].items() if "kl_to" in k))
    assert moved[1] > moved[0] + 0.1  # less was learned


def test_not_with_objectives_that_have_no_logits(pico_path: PicoPath) -> None:
    objective = {"kind": "rmu", "layer": 0}
    with pytest.raises(ConfigError, match="compares logits"):
        train(config(objective=objective, penalty="kl_to_base"), loaded=load(pico_path), rows=rows(2))
