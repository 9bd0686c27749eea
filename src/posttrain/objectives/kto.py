"""KTO: answers graded good or bad, one by one; no pairs. Ethayarajh et al. 2024, arXiv:2402.01306.

The value of an answer is measured from a zero point z, as people judge gains and losses. z measures how much likelier
the model has made answers that do not belong to their prompts. A good answer gains when it rises above z, and a bad
answer when it falls below z.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.config.base import Config
from posttrain.objectives._loss import Loss
from posttrain.registry import register

__all__ = ["KtoConfig", "kto"]


class KtoConfig(Config):
    """Graded answers, compared with the model before training."""

    form: ClassVar[str] = "graded"

    kind: Literal["kto"] = "kto"
    """Kahneman-Tversky optimisation."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto`, or `apo_zero_unpaired` (arXiv:2408.06266): the zero point is that of the model before training, z = 0."""
    beta: float = Field(0.1, gt=0)
    """The cost of moving away from the model before training."""
    desirable_weight: float = Field(1.0, ge=0)
    """Weight of good answers."""
    undesirable_weight: float = Field(1.0, ge=0)
    """Weight of bad answers. The paper wants (weight x number of good ones) / (weight x number of bad ones) between 1
    and 4/3, whatever the data's own proportion is."""
    reference: Literal["precompute", "adapter"] = "precompute"
    """When the model before training is asked: once before the first step, or in every step; as in `dpo`."""


@register("objective", "kto", config=KtoConfig, paper="arXiv:2402.01306")
def kto(policy: Tensor, reference: Tensor, desirable: Tensor, zero: Tensor, config: KtoConfig) -> Loss:
    """Return the loss of each answer.

        r = log p(y|x) - log p_ref(y|x)
        good: w_good (1 - sigmoid(beta (r - z)))        bad: w_bad (1 - sigmoid(beta (z - r)))

    policy, reference: log-probabilities of the answers in nats, summed over tokens, (B,); desirable: (B,) bool; zero: z
    in nats (an estimate of KL(p || p_ref), not below 0), a scalar without gradient.
    """
    ratio = policy - reference
    zero = torch.zeros_like(zero) if config.loss == "apo_zero_unpaired" else zero.detach()
    ahead = torch.where(desirable, ratio - zero, zero - ratio)
    weight = torch.where(desirable, config.desirable_weight, config.undesirable_weight).to(ratio)
    nats = weight * (1 - torch.sigmoid(config.beta * ahead))
    ahead = config.beta * ahead.detach()
    metrics = {
        "margin": ahead,  # distance from z, positive on the right side
        "accuracy": (ahead > 0).to(torch.float32),
        "zero_point": zero.expand(ratio.shape),
        "reward": config.beta * ratio.detach(),
    }
    return Loss(nats, torch.ones_like(desirable, dtype=torch.long), metrics)
