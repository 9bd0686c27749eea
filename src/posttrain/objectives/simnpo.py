"""SimNPO: negative preference optimisation by length, without a reference. Fan et al. 2024, arXiv:2410.07163.

    L = - (2 / beta) mean over forget rows of log sigmoid(- (beta / |y|) log p(y | x) - gamma)

|y| is the number of the answer's tokens, its end token included. NPO measures how far a row has moved, so it pushes a
row that the model hardly knew as hard as a row that it has memorised. Here the force depends on how likely the row is
now. Some code writes delta for gamma / beta.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from posttrain.objectives._loss import Loss
from posttrain.objectives._unlearning import ForgetAndRetain, RetainConfig, one_each, per_token, retain_nats, token_nats
from posttrain.registry import register

__all__ = ["SimnpoConfig", "simnpo"]


class SimnpoConfig(RetainConfig):
    """Unlearn the rows, less and less the unlikelier each is."""

    per_row: ClassVar[bool] = True

    kind: Literal["simnpo"] = "simnpo"
    """Reference-free, length-normalised negative preference optimisation."""
    beta: float = Field(default=2.5, gt=0)
    """How soon a row counts as forgotten: the larger, the sooner."""
    gamma: float = Field(default=0.0, ge=0)
    """Margin: the larger, the more unlikely a row must be before it counts as forgotten."""


@register("objective", "simnpo", config=SimnpoConfig, paper="arXiv:2410.07163")
def simnpo(rows: ForgetAndRetain, config: SimnpoConfig) -> Loss:
    """Return the loss of each row; one unit per row.

        nats_b = - (2 / beta) log sigmoid(beta mean_t(-log p(y_bt)) - gamma)   forget rows
        nats_b = mean_t -log p(y_bt)                                           retain rows (retain: nll)

    metrics: forget_nll, the mean negative log-likelihood of a row's tokens.
    """
    nats = token_nats(rows.logits, rows.targets)  # (B, K)
    mean = per_token(nats.sum(1), rows.targets)  # (B,)
    forget = -2 / config.beta * logsigmoid(config.beta * mean - config.gamma)
    retain = per_token(retain_nats(rows, nats, config.retain), rows.targets)
    return Loss(torch.where(rows.old, retain, forget), one_each(rows.targets), {"forget_nll": mean.detach()})
