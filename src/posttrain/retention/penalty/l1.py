"""Pull every trained parameter towards zero by its sign: lambda |theta| (Tibshirani 1996).

With LoRA the parameters are the two matrices, so the update is pulled to zero. With AdamW the pull is coupled (see
`_base`): Adam divides it by the same running size as the task's gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from posttrain.registry import register
from posttrain.retention.penalty._base import Memoryless, ParameterPenalty, PenaltyContext, StrengthConfig

__all__ = ["L1Config", "l1"]


class L1Config(StrengthConfig):
    """The sum of the parameters' sizes."""

    kind: Literal["l1"] = "l1"
    """strength x |theta|."""
    strength: float = Field(default=0.01, gt=0)
    """The pull as a share of the loss's push at the first step; with `scale: absolute` lambda, nats per unit."""


@register("penalty", "l1", config=L1Config)
def l1(config: L1Config, context: PenaltyContext) -> ParameterPenalty:
    """Return the penalty of a run."""
    return Memoryless(config.strength, torch.abs, torch.sign)
