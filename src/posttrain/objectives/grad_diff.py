"""Gradient difference: up on what shall be forgotten, down on what shall stay. Liu et al. 2022, arXiv:2203.12817.

    L = - mean nll of the forget rows' tokens + retain_weight x mean nll of the retain rows' tokens

The first part has no lower bound (see `grad_ascent`). Once it is large, the second part has no effect any more.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from posttrain.data.tokens import IGNORED
from posttrain.objectives._loss import Loss
from posttrain.objectives._unlearning import ForgetAndRetain, RetainConfig, retain_nats, token_nats
from posttrain.registry import register

__all__ = ["GradDiffConfig", "grad_diff"]


class GradDiffConfig(RetainConfig):
    """Unlearn the rows and learn the replayed ones."""

    retains: ClassVar[Literal["never", "may", "must"]] = "must"

    kind: Literal["grad_diff"] = "grad_diff"
    """Gradient ascent on the forget rows, descent on the retain rows."""
    max_nll: float | None = Field(default=None, gt=0)
    """Tokens whose negative log-likelihood has reached this (nats) are left alone; no bound when not given."""


@register("objective", "grad_diff", config=GradDiffConfig, paper="arXiv:2203.12817")
def grad_diff(rows: ForgetAndRetain, config: GradDiffConfig) -> Loss:
    """Return minus the negative log-likelihood of forget rows, and the retain loss (nll or KL) of retain rows.

        nats_b = - sum_t min(-log p(y_bt), max_nll)   forget rows
        nats_b = sum_t -log p(y_bt)                   retain rows (retain: nll)

    metrics: forget_nll, the negative log-likelihood of a row's tokens.
    """
    nats = token_nats(rows.logits, rows.targets)  # (B, K)
    bounded = nats if config.max_nll is None else nats.clamp(max=config.max_nll)
    loss = torch.where(rows.old, retain_nats(rows, nats, config.retain), -bounded.sum(1))
    return Loss(loss, (rows.targets != IGNORED).sum(1), {"forget_nll": nats.detach().sum(1)})
