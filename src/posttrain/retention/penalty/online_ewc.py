"""EWC with one running Fisher information and one centre for all tasks. Schwarz et al. 2018, arXiv:1805.06370.

    lambda / 2 sum_i F_i (theta_i - theta*_i)^2,      F <- gamma F + F_new,   theta* <- where the last task ended

With gamma below 1 old tasks fade, so that the model can still learn. `ewc` describes how F is measured.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.registry import register
from posttrain.retention.penalty._base import ParameterPenalty, PenaltyContext
from posttrain.retention.penalty._measured import Measured
from posttrain.retention.penalty.ewc import FisherConfig

__all__ = ["OnlineEwcConfig", "online_ewc"]


class OnlineEwcConfig(FisherConfig):
    """The last task's end holds, with the importances of all tasks so far."""

    kind: Literal["online_ewc"] = "online_ewc"
    """strength / 2 x sum of F (theta - theta*)^2, F a running sum."""
    gamma: float = Field(default=0.95, ge=0, le=1)
    """What is left of the old importances when a task's are added."""


@register("penalty", "online_ewc", config=OnlineEwcConfig, paper="arXiv:1805.06370")
def online_ewc(config: OnlineEwcConfig, context: PenaltyContext) -> ParameterPenalty:
    """Return the penalty for a run that starts from the present parameters."""
    return Measured(config, context, decay=config.gamma, unit=0.5)
