"""ORPO: by hand, and against TRL's trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.objectives._loss import Pairs
from posttrain.objectives.orpo import OrpoConfig, log1mexp, orpo
from posttrain.training.forms.pairs import PairsForm
from tests.objectives import oracle
from tests.training.tiny import answered


def test_by_hand() -> None:
    # Per token: p = 1/2 for the chosen answer, 1/5 for the rejected one; odds 1 and 1/4.
    policy = Pairs(torch.tensor([3 * log(1 / 2)]), torch.tensor([2 * log(1 / 5)]), torch.tensor([3]), torch.tensor([2]))
    loss = orpo(policy, None, OrpoConfig(weight=0.5))
    log_odds = log(1) - log(1 / 4)
    assert loss.nats.tolist() == pytest.approx([log(2) - 0.5 * log(1 / (1 + exp(-log_odds)))], abs=1e-6)
    assert loss.metrics["log_odds"].tolist() == pytest.approx([log(4)], abs=1e-6)
    assert loss.metrics["nll"].tolist() == pytest.approx([log(2)], abs=1e-6)
    assert loss.metrics["accuracy"].tolist() == [1.0]


def test_log1mexp_near_both_ends() -> None:
    x = torch.tensor([-1e-6, -50.0])
    assert log1mexp(x).tolist() == pytest.approx([log(1e-6 - 0.5e-12), -exp(-50)], rel=1e-5)


def test_an_answer_the_model_is_sure_of_has_a_finite_loss_and_gradient() -> None:
    chosen = torch.tensor([0.0, -2.0], requires_grad=True)
    tokens = torch.tensor([1, 1])
    nats = orpo(Pairs(chosen, torch.tensor([-3.0, 0.0]), tokens, tokens), None, OrpoConfig()).nats
    torch.autograd.backward(nats.sum())
    assert nats.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_equals_trl(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    """One pair at a time, prompts of one token: TRL counts the prompt's tokens in the likelihood, of which the first has
    nothing to be told from, and weights pairs by their length."""
    pytest.importorskip("trl", reason="TRL is not installed: it is the oracle here, a dev dependency")
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    policy, _ = oracle.policy_and_reference(pico_path("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = ORPOTrainer(
            model=policy.model,
            args=ORPOConfig(output_dir=str(tmp_path), **oracle.SETTINGS | {"max_length": 512}, beta=0.3),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=policy.tokenizer,
        )
    form = PairsForm(oracle.setup(OrpoConfig(weight=0.3), orpo, policy.tokenizer))
    form.device = torch.device("cpu")
    policy.model.eval()
    for i, (chosen, rejected) in enumerate((([31, 32, 33, 2], [34, 35, 2]), ([90, 2], [70, 71, 72, 73, 74, 2]))):
        row = answered(1, chosen, rejected)
        sides: dict[str, Any] = {}
        for name, side in (("chosen", row.chosen), ("rejected", row.rejected)):
            sides[f"{name}_input_ids"] = torch.tensor([side.input_ids])
            sides[f"{name}_attention_mask"] = torch.ones_like(sides[f"{name}_input_ids"])
            sides[f"{name}_labels"] = torch.tensor([side.labels])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, reported = made.get_batch_loss_metrics(policy.model, sides)
            loss = form.loss(policy.model, form.micro_batch([row], [False]))
        assert float(loss.nats) == pytest.approx(float(expected), abs=1e-5)
        assert float(loss.metrics["log_odds"]) == pytest.approx(reported["log_odds_chosen"], abs=1e-5)
        assert float(loss.metrics["margin"]) == pytest.approx(reported["rewards/margins"], abs=1e-5)
