"""DPO, IPO and hinge: by hand, and against TRL's trainer on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from posttrain.objectives._loss import Pairs
from posttrain.objectives.dpo import DpoConfig, dpo
from posttrain.training.forms.base import EncodeSettings
from posttrain.training.forms.pairs import PairsForm
from tests.objectives import oracle


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


# Two pairs. Log-ratios of the first: chosen -2 - (-3) = 1, rejected -8 - (-6) = -2; of the second: 0.5 and 1.5.
POLICY = Pairs(torch.tensor([-2.0, -4.5]), torch.tensor([-8.0, -1.0]), torch.tensor([2, 5]), torch.tensor([4, 3]))
REFERENCE = POLICY._replace(chosen=torch.tensor([-3.0, -5.0]), rejected=torch.tensor([-6.0, -2.5]))
DISTANCES = (3.0, -1.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta": 0.5}, [-log(sigmoid(0.5 * d)) for d in DISTANCES]),
        (
            {"beta": 0.5, "label_smoothing": 0.1},
            [-0.9 * log(sigmoid(0.5 * d)) - 0.1 * log(sigmoid(-0.5 * d)) for d in DISTANCES],
        ),
        ({"beta": 0.5, "loss": "hinge"}, [0.0, 1.5]),
        # means over tokens: 1/2 - (-2)/4 = 1, and 0.5/5 - 1.5/3 = -0.4; 1 / (2 beta) = 1
        ({"beta": 0.5, "loss": "ipo"}, [0.0, 1.4**2]),
    ],
)
def test_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    loss = dpo(POLICY, REFERENCE, DpoConfig(**settings))
    assert loss.nats.tolist() == pytest.approx(expected, abs=1e-6)
    assert loss.units.tolist() == [1, 1]
    told = {name: values.tolist() for name, values in loss.metrics.items()}
    assert told == {
        "reward_chosen": pytest.approx([0.5, 0.25]),
        "reward_rejected": pytest.approx([-1.0, 0.75]),
        "margin": pytest.approx([1.5, -0.5]),
        "accuracy": [1.0, 0.0],
    }


def test_where_nothing_has_moved_it_is_log_two() -> None:
    still = POLICY._replace(chosen=POLICY.chosen.double(), rejected=POLICY.rejected.double())
    assert dpo(still, still, DpoConfig()).nats.tolist() == [log(2), log(2)]


def test_gradient_by_hand() -> None:
    """-beta sigmoid(-beta d) on the chosen answer's log-probability, the opposite on the rejected one's."""
    chosen = POLICY.chosen.clone().requires_grad_()
    rejected = POLICY.rejected.clone().requires_grad_()
    nats = dpo(POLICY._replace(chosen=chosen, rejected=rejected), REFERENCE, DpoConfig(beta=0.5)).nats
    up, down = torch.autograd.grad(nats.sum(), [chosen, rejected])
    assert up.tolist() == pytest.approx([-0.5 * sigmoid(-0.5 * d) for d in DISTANCES])
    assert down.tolist() == pytest.approx([0.5 * sigmoid(-0.5 * d) for d in DISTANCES])


def test_smoothing_belongs_to_the_sigmoid() -> None:
    with pytest.raises(ValidationError, match="label_smoothing belongs to the sigmoid loss"):
        DpoConfig(loss="ipo", label_smoothing=0.1)


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({}, {}),
        ({"loss": "ipo", "beta": 0.3}, {"loss_type": ["ipo"], "beta": 0.3}),
        ({"loss": "hinge", "beta": 0.7}, {"loss_type": ["hinge"], "beta": 0.7}),
    ],
    ids=["sigmoid", "ipo", "hinge"],
)
def test_equals_trl(
    pico_path: Callable[[str], Path], tmp_path: Path, settings: dict[str, Any], theirs: dict[str, Any]
) -> None:
    folder = pico_path("llama")
    made = oracle.trainer("DPOTrainer", folder, tmp_path, oracle.PAIRS, **theirs)
    batch, expected = oracle.loss_of(made)
    policy, reference = oracle.policy_and_reference(folder)
    config = DpoConfig(**settings)
    rows = PairsForm.encode(oracle.preferences(), policy.tokenizer, EncodeSettings(config, 512)).rows
    sides = [*(row.chosen for row in rows), *(row.rejected for row in rows)]
    for side, ids, answer in zip(sides, batch["input_ids"].tolist(), batch["completion_mask"].tolist(), strict=True):
        assert side.input_ids == ids[: len(side.input_ids)]
        assert [label != -100 for label in side.labels] == [bool(a) for a in answer[: len(side.labels)]]
    form = PairsForm(oracle.setup(config, dpo, policy.tokenizer))
    form.device = torch.device("cpu")
    form.prepare(oracle.preparation(policy.model, reference.model, rows))
    with torch.no_grad():
        loss = form.loss(policy.model, form.micro_batch(rows, [False] * 4))
    # sums of some hundred nats in float32, added in another order
    assert float(loss.nats.mean()) == pytest.approx(expected, abs=1e-5)
    reported = made._metrics["eval"]
    for ours, name in (("reward_chosen", "chosen"), ("reward_rejected", "rejected"), ("margin", "margins")):
        assert float(loss.metrics[ours].mean()) == pytest.approx(reported[f"rewards/{name}"][0], rel=1e-4)
    assert float(loss.metrics["accuracy"].mean()) == reported["rewards/accuracies"][0]
