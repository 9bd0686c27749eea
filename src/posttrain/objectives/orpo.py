"""ORPO: the chosen answer is learned and preferred at once, without a reference. Hong et al. 2024, arXiv:2403.07691."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.objectives._loss import Loss, Pairs, pair_metrics
from posttrain.registry import register

__all__ = ["OrpoConfig", "log1mexp", "orpo"]


class OrpoConfig(Config):
    """Preference pairs, without a reference."""

    form: ClassVar[str] = "pairs"
    compares: ClassVar[bool] = False

    kind: Literal["orpo"] = "orpo"
    """Odds ratio preference optimisation."""
    weight: float = Field(0.1, ge=0)
    """The paper's lambda: weight of the odds ratio beside the likelihood of the chosen answer."""


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, exact near both ends: log1p for small exp(x), expm1 near zero."""
    return torch.where(x < -math.log(2), torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


@register("objective", "orpo", config=OrpoConfig, paper="arXiv:2403.07691")
def orpo(policy: Pairs, reference: None, config: OrpoConfig) -> Loss:
    """Return the loss of each pair. p is the geometric mean of an answer's token probabilities:

        log p(y|x) = (1 / |y|) sum_t log p(y_t | x, y_<t)         odds(y|x) = p / (1 - p)
        nats = - log p(y_w|x) - weight log sigmoid( log odds(y_w|x) - log odds(y_l|x) )

    The likelihood is that of the answer only, and every pair has the same weight. TRL's and the authors' code also
    count the prompt's tokens, and give long answers more weight.
    """
    mean = policy.per_token
    # an answer that is certain for the model has p = 1 in floating point, and its odds would be infinite
    highest = -torch.finfo(mean.chosen.dtype).eps
    chosen, rejected = mean.chosen.clamp(max=highest), mean.rejected.clamp(max=highest)
    log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
    nats = -mean.chosen - config.weight * functional.logsigmoid(log_odds)
    metrics = {"log_odds": log_odds.detach(), "nll": -mean.chosen.detach()}
    rewards = pair_metrics(config.weight * mean.chosen, config.weight * mean.rejected)
    return Loss(nats, nats.new_ones(nats.shape, dtype=policy.chosen_tokens.dtype), metrics | rewards)
