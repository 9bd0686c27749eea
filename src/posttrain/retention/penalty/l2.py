"""Pull every trained parameter towards zero by its size: (lambda / 2) |theta|^2 (ridge, Hoerl & Kennard 1970).

This is not AdamW's weight decay, which is decoupled and acts in the same way for all gradients (arXiv:1711.05101). This
penalty is coupled: it is a part of the gradient, which Adam rescales. To stay near the model before training, use
`l2_sp`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.registry import register
from posttrain.retention.penalty._base import Memoryless, ParameterPenalty, PenaltyContext, StrengthConfig

__all__ = ["L2Config", "l2"]


class L2Config(StrengthConfig):
    """Half the sum of the parameters' squares."""

    kind: Literal["l2"] = "l2"
    """strength / 2 x |theta|^2."""
    strength: float = Field(default=0.01, gt=0)
    """The pull as a share of the loss's push at the first step; with `scale: absolute` lambda, nats per squared
    unit."""


@register("penalty", "l2", config=L2Config)
def l2(config: L2Config, context: PenaltyContext) -> ParameterPenalty:
    """Return the penalty of a run."""
    return Memoryless(config.strength, lambda theta: 0.5 * theta.square(), lambda theta: theta)
