"""Memory aware synapses: hold the parameters on which the outputs depend, without labels. Aljundi et al. 2018.

    lambda sum_i Omega_i (theta_i - theta*_i)^2,    Omega_i = mean of |d ||z||^2 / d theta_i|     arXiv:1711.09601

z are the logits at a row's supervised positions. The absolute value is taken per row, and the mean is over positions
(see `models/curvature.py`). Importances of tasks add up; the centre is the end of the last task. A squared logit is not
a nat: Omega is some orders of magnitude larger than Fisher information and grows with the vocabulary, so lambda is
small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from posttrain.models.curvature import Curvature, Example, mas_importance
from posttrain.registry import register
from posttrain.retention.penalty._base import ParameterPenalty, PenaltyContext
from posttrain.retention.penalty._measured import Measured, MeasuredConfig

__all__ = ["MasConfig", "mas"]


class MasConfig(MeasuredConfig):
    """What the outputs depend on is held."""

    kind: Literal["mas"] = "mas"
    """strength x sum of Omega (theta - theta*)^2."""
    strength: float = Field(default=0.01, gt=0)
    """The pull after one step, as a share of the loss's push; with `scale: absolute` lambda."""

    def measure(self, context: PenaltyContext, examples: Sequence[Example]) -> Curvature:
        return mas_importance(context.loaded.model, context.trainable, examples)


@register("penalty", "mas", config=MasConfig, paper="arXiv:1711.09601")
def mas(config: MasConfig, context: PenaltyContext) -> ParameterPenalty:
    """Return the penalty for a run that starts from the present parameters."""
    return Measured(config, context, decay=1.0)
