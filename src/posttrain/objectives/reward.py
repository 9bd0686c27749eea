"""Reward model: a score per answer, higher for the chosen one. Bradley & Terry 1952; Ouyang et al., arXiv:2203.02155.

The model gets a head with one output instead of the language-model head. The score is read at the last token. The model
is saved as a folder that `AutoModelForSequenceClassification` loads.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.objectives._loss import Loss, pair_metrics
from posttrain.registry import register

__all__ = ["RewardConfig", "reward"]


class RewardConfig(Config):
    """Preference pairs, scored one answer at a time."""

    form: ClassVar[str] = "ranking"

    kind: Literal["reward"] = "reward"
    """Reward model."""
    center_rewards_coefficient: float = Field(0.0, ge=0)
    """Pulls the two scores of a pair to a sum of zero (arXiv:2312.09244), since the loss knows differences only; 0.01
    is usual."""


@register("objective", "reward", config=RewardConfig, paper="arXiv:2203.02155")
def reward(chosen: Tensor, rejected: Tensor, margins: Tensor, config: RewardConfig) -> Loss:
    """Return the loss of each pair.

        nats = - log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2

    chosen, rejected: scores, (B,) each; margins: m, (B,), by how much the chosen answer is better, 0 if not known.
    """
    nats = -functional.logsigmoid(chosen - rejected - margins)
    if config.center_rewards_coefficient:
        nats = nats + config.center_rewards_coefficient * (chosen + rejected) ** 2
    return Loss(nats, margins.new_ones(margins.shape).long(), pair_metrics(chosen, rejected))
