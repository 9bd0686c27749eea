"""KTO: by hand, and against TRL's trainer on the same rows and the same mismatched answers."""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.chat import Encoded
from posttrain.objectives.kto import KtoConfig, kto
from posttrain.training.forms.base import EncodeSettings
from posttrain.training.forms.graded import GradedForm
from tests.objectives import oracle

# log-ratios 3, -1, 2, -4; the first two are good, the others bad
POLICY = torch.tensor([-2.0, -6.0, -1.0, -9.0])
REFERENCE = torch.tensor([-5.0, -5.0, -3.0, -5.0])
GOOD = torch.tensor([True, True, False, False])


def value(x: float) -> float:
    return 1 - 1 / (1 + exp(-x))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # z = 1: good 3 - 1 and -1 - 1, bad 1 - 2 and 1 + 4
        ({"beta": 0.5}, [value(1.0), value(-1.0), value(-0.5), value(2.5)]),
        (
            {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 0.25},
            [2 * value(1.0), 2 * value(-1.0), 0.25 * value(-0.5), 0.25 * value(2.5)],
        ),
        ({"beta": 0.5, "loss": "apo_zero_unpaired"}, [value(1.5), value(-0.5), value(-1.0), value(2.0)]),
    ],
)
def test_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    loss = kto(POLICY, REFERENCE, GOOD, torch.tensor(1.0), KtoConfig(**settings))
    assert loss.nats.tolist() == pytest.approx(expected, abs=1e-6)
    assert loss.units.tolist() == [1, 1, 1, 1]
    assert loss.metrics["accuracy"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert loss.metrics["reward"].tolist() == [1.5, -0.5, 1.0, -2.0]


def test_the_zero_point_has_no_gradient() -> None:
    zero = torch.tensor(0.3, requires_grad=True)
    policy = POLICY.clone().requires_grad_()
    nats = kto(policy, REFERENCE, GOOD, zero, KtoConfig()).nats
    torch.autograd.backward(nats.sum())
    assert zero.grad is None
    assert policy.grad is not None
    assert (policy.grad[GOOD] < 0).all()
    assert (policy.grad[~GOOD] > 0).all()


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"desirable_weight": 1.5}, {"desirable_weight": 1.5}),
        ({"loss": "apo_zero_unpaired", "beta": 0.4}, {"loss_type": "apo_zero_unpaired", "beta": 0.4}),
    ],
    ids=["kto", "apo_zero_unpaired"],
)
def test_equals_trl(
    pico_path: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    theirs: dict[str, Any],
) -> None:
    folder = pico_path("llama")
    made = oracle.trainer("KTOTrainer", folder, tmp_path, oracle.GRADED, swapped=True, **theirs)  # so z is above 0
    batch, expected = oracle.loss_of(made)
    reference, policy = oracle.policy_and_reference(folder)
    config = KtoConfig(**settings)
    form = GradedForm(oracle.setup(config, kto, policy.tokenizer))
    form.device = torch.device("cpu")
    rows = form.encode(oracle.graded(), policy.tokenizer, EncodeSettings(config, 512)).rows
    for row, ids in zip(rows, batch["input_ids"].tolist(), strict=True):
        assert row.answer.input_ids == ids[: len(row.answer.input_ids)]
    if config.loss == "kto":  # TRL's own mismatched answers, each prompt with its neighbour's
        theirs_only = [
            Encoded(prompt + answer, [-100] * len(prompt) + answer, "")
            for one in made.train_dataset
            for prompt, answer in [(one["prompt_ids"], one["KL_completion_ids"])]
        ]
        monkeypatch.setattr("posttrain.training.forms.graded.mismatched", lambda part: theirs_only[: len(part)])
    form.prepare(oracle.preparation(policy.model, reference.model, rows))
    with torch.no_grad():
        micro = form.micro_batch(rows, [False] * 5)
        form.begin_step(policy.model, [micro], 0)
        loss = form.loss(policy.model, micro)
    assert float(loss.nats.mean()) == pytest.approx(expected, abs=1e-5)
    reported = made._metrics["eval"]
    assert form.zero == pytest.approx(reported["kl"][0], rel=1e-4)
    assert (form.zero > 0.5) == (config.loss == "kto")
    for ours, name in (("good", "chosen"), ("bad", "rejected")):
        assert float(loss.metrics[f"reward_{ours}"].mean()) == pytest.approx(reported[f"rewards/{name}"][0], rel=1e-4)
