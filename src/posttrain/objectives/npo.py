"""Negative preference optimisation: DPO with nothing but rejected answers. Zhang et al. 2024, arXiv:2404.05868.

    L = - (2 / beta) mean over forget rows of log sigmoid(- beta log(p(y | x) / p_before(y | x)))

p(y | x) is the probability of the whole answer, its end token included. At the start the loss is (2 / beta) ln 2. The
gradient is that of gradient ascent times 2 r / (1 + r) with r = (p / p_before)^beta, so a forgotten row has no effect
any more. When beta goes to 0, the objective becomes gradient ascent.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from posttrain.objectives._loss import Loss
from posttrain.objectives._unlearning import ForgetAndRetain, RetainConfig, one_each, per_token, retain_nats, token_nats
from posttrain.registry import register

__all__ = ["NpoConfig", "npo"]


class NpoConfig(RetainConfig):
    """Unlearn the rows, less and less the further each is from where it began."""

    per_row: ClassVar[bool] = True
    asks_before: ClassVar[bool] = True

    kind: Literal["npo"] = "npo"
    """Negative preference optimisation."""
    beta: float = Field(default=0.1, gt=0)
    """How soon a row counts as forgotten: the larger, the sooner."""


@register("objective", "npo", config=NpoConfig, paper="arXiv:2404.05868")
def npo(rows: ForgetAndRetain, config: NpoConfig) -> Loss:
    """Return the loss of each row; one unit per row.

        nats_b = - (2 / beta) log sigmoid(- beta (log p(y_b) - log p_before(y_b)))   forget rows
        nats_b = mean_t -log p(y_bt)                                                 retain rows (retain: nll)

    metrics: forget_nll, the mean negative log-likelihood of a row's tokens; log_ratio, log p - log p_before of a row.
    """
    assert rows.before_logps is not None, "npo needs the forget rows' log-probabilities before training"
    nats = token_nats(rows.logits, rows.targets)  # (B, K)
    log_ratio = -nats.sum(1) - rows.before_logps.to(nats)  # (B,)
    forget = -2 / config.beta * logsigmoid(-config.beta * log_ratio)
    retain = per_token(retain_nats(rows, nats, config.retain), rows.targets)
    metrics = {"forget_nll": per_token(nats.sum(1), rows.targets).detach(), "log_ratio": log_ratio.detach()}
    return Loss(torch.where(rows.old, retain, forget), one_each(rows.targets), metrics)
