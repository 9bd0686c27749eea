"""Gradient ascent: unlearn rows by raising their cross-entropy. Jang et al. 2022, arXiv:2210.01504.

    L = - mean over the forget rows' tokens of -log p(token | all before it)

The loss has no lower bound: it goes to minus infinity and destroys the model, so training must be stopped by a separate
rule. The paper stops when the model knows a row no better than a row that it has never seen. Barbulescu & Triantafillou
(arXiv:2405.03097) leave out rows that are forgotten already. `max_nll`, our own setting, does this for each token: a
token that is as unlikely as this has no gradient any more. Guessing gives a negative log-likelihood of ln(vocabulary
size).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from posttrain.data.tokens import IGNORED
from posttrain.objectives._loss import Loss
from posttrain.objectives._unlearning import ForgetAndRetain, UnlearningConfig, token_nats
from posttrain.registry import register

__all__ = ["GradAscentConfig", "grad_ascent"]


class GradAscentConfig(UnlearningConfig):
    """Unlearn the rows; nothing is retained."""

    retains: ClassVar[Literal["never", "may", "must"]] = "never"

    kind: Literal["grad_ascent"] = "grad_ascent"
    """Gradient ascent on the forget rows."""
    max_nll: float | None = Field(default=None, gt=0)
    """Tokens whose negative log-likelihood has reached this (nats) are left alone; no bound when not given."""


@register("objective", "grad_ascent", config=GradAscentConfig, paper="arXiv:2210.01504")
def grad_ascent(rows: ForgetAndRetain, config: GradAscentConfig) -> Loss:
    """Return minus the negative log-likelihood of the forget rows, summed per row.

    nats_b = - sum_t min(-log p(y_bt), max_nll)   over supervised tokens

    metrics: forget_nll, the negative log-likelihood itself.
    """
    nats = token_nats(rows.logits, rows.targets)  # (B, K)
    bounded = nats if config.max_nll is None else nats.clamp(max=config.max_nll)
    return Loss(-bounded.sum(1), (rows.targets != IGNORED).sum(1), {"forget_nll": nats.detach().sum(1)})
