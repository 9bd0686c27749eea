"""The reward model's loss: by hand, and against TRL's trainer on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.models.heads import load_head_model
from posttrain.objectives.reward import RewardConfig, reward
from posttrain.training.forms.base import EncodeSettings
from posttrain.training.forms.pairs import RankingForm, Scored, calibration_error, length_correlation
from tests.objectives import oracle

CHOSEN, REJECTED = torch.tensor([1.0, 0.5]), torch.tensor([-1.0, 1.5])


def lost(difference: float) -> float:
    return -log(1 / (1 + exp(-difference)))


@pytest.mark.parametrize(
    ("coefficient", "margins", "expected"),
    [
        (0.0, [0.0, 0.0], [lost(2), lost(-1)]),
        (0.0, [1.5, 0.25], [lost(0.5), lost(-1.25)]),
        (0.1, [0.0, 0.0], [lost(2), lost(-1) + 0.1 * 4.0]),
    ],
)
def test_by_hand(coefficient: float, margins: list[float], expected: list[float]) -> None:
    config = RewardConfig(center_rewards_coefficient=coefficient)
    loss = reward(CHOSEN, REJECTED, torch.tensor(margins), config)
    assert loss.nats.tolist() == pytest.approx(expected, abs=1e-6)
    assert loss.units.tolist() == [1, 1]
    assert loss.metrics["margin"].tolist() == [2.0, -1.0]
    assert loss.metrics["accuracy"].tolist() == [1.0, 0.0]


def test_length_correlation_by_hand() -> None:
    assert length_correlation([Scored(3.0, 1.0, 30, 10)]) == pytest.approx(1.0)
    assert length_correlation([Scored(1.0, 3.0, 30, 10)]) == pytest.approx(-1.0)
    assert length_correlation([Scored(2.0, 2.0, 30, 10)]) == 0.0
    # scores 1 2 3 4 less 2.5, tokens 1 3 2 4 less 2.5: (2.25 - 0.25 - 0.25 + 2.25) / 5
    assert length_correlation([Scored(1.0, 2.0, 1, 3), Scored(3.0, 4.0, 2, 4)]) == pytest.approx(0.8)


def test_calibration_error_by_hand() -> None:
    # sure to 0.88 (margins of 2) and right three times of four: 0.88 - 0.75; to 0.62 (margins of 1/2) and never right
    sure, little = 1 / (1 + exp(-2)), 1 / (1 + exp(-0.5))
    scored = [Scored(a, b, 1, 1) for a, b in ((2, 0), (2, 0), (2, 0), (0, 2), (0, 0.5), (0, 0.5))]
    assert calibration_error(scored) == pytest.approx((4 * (sure - 0.75) + 2 * little) / 6)


@pytest.mark.parametrize(
    ("settings", "theirs", "margin"),
    [({}, {}, None), ({"center_rewards_coefficient": 0.05}, {"center_rewards_coefficient": 0.05}, 0.5)],
)
def test_equals_trl(
    pico_path: Callable[[str], Path],
    tmp_path: Path,
    settings: dict[str, Any],
    theirs: dict[str, Any],
    margin: float | None,
) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed: it is the oracle here, a dev dependency")
    from datasets import Dataset

    loaded = load_head_model(str(pico_path("llama")), "sequence", ["reward"], device="cpu", say=lambda text: None)
    more = {} if margin is None else {"margin": margin}
    made = trl.RewardTrainer(
        model=loaded.model,
        args=trl.RewardConfig(output_dir=str(tmp_path), **oracle.SETTINGS, **theirs),
        train_dataset=Dataset.from_list([{**row, **more} for row in oracle.PAIRS]),
        processing_class=loaded.tokenizer,
    )
    config = RewardConfig(**settings)
    form = RankingForm(oracle.setup(config, reward, loaded.tokenizer))
    form.device = torch.device("cpu")
    rows = form.encode(oracle.preferences(**more), loaded.tokenizer, EncodeSettings(config, 512)).rows
    batch, expected = oracle.loss_of(made)
    micro = form.micro_batch(rows, [False] * 4)
    assert torch.equal(micro.tensors["input_ids"], batch["input_ids"])
    with torch.no_grad():
        loss = form.loss(made.model, micro)
    assert float(loss.nats.mean()) == pytest.approx(expected, abs=1e-6)
    assert float(loss.metrics["accuracy"].mean()) == made._metrics["eval"]["accuracy"][0]
