"""Elastic weight consolidation: hold parameters more tightly if earlier tasks need them. Kirkpatrick et al. 2017.

    lambda / 2 sum over tasks k and parameters i of F_ki (theta_i - theta*_ki)^2            arXiv:1612.00796, eq. 3

F is the diagonal Fisher information per supervised token, measured per row (see `models/curvature.py`). Before the
first task it is measured for what the model can do, and at the end of every task on the task's own rows. At
lambda = 1 a nat of divergence from the old model has, to second order, the weight of a nat of loss, at every batch
size. In practice a much larger lambda is needed: F does not contain what the measured rows do not show, and the penalty
does not hold what is off the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from posttrain.models.curvature import Curvature, Example, FisherKind, fisher
from posttrain.registry import register
from posttrain.retention.penalty._base import ParameterPenalty, PenaltyContext
from posttrain.retention.penalty._measured import Measured, MeasuredConfig

__all__ = ["EwcConfig", "FisherConfig", "ewc"]


class FisherConfig(MeasuredConfig):
    """How Fisher information is estimated."""

    strength: float = Field(default=0.1, gt=0)
    """The pull after one step, as a share of the loss's push; with `scale: absolute` lambda, nats of loss per
    nat of divergence."""
    fisher: FisherKind = "signs"
    """`signs`: all tokens of the vocabulary with random signs, one backward pass per row; `sampled`: targets drawn from
    the model's own distribution, the same in expectation and much less sure where the model is confident; `true`: the
    exact expectation, one backward pass for each token of the vocabulary at each position, for small vocabularies only;
    `empirical`: the rows' own targets, which is another thing."""
    draws: int = Field(default=1, gt=0)
    """How often `signs` or `sampled` is repeated on each row."""

    def settings(self) -> dict[str, object]:
        """Return the settings that affect a measurement. All penalties with Fisher information share them."""
        return {"fisher": self.fisher, "draws": self.draws}

    def measure(self, context: PenaltyContext, examples: Sequence[Example]) -> Curvature:
        if self.fisher == "true":
            passes = sum(len(e.positions) for e in examples) * len(context.loaded.tokenizer)
            context.say(f"{self.kind}: true Fisher information takes {passes:,} backward passes")
        model, moving, seed = context.loaded.model, context.trainable, context.seed
        return fisher(model, moving, examples, kind=self.fisher, draws=self.draws, seed=seed)


class EwcConfig(FisherConfig):
    """Each earlier task holds the parameters that matter to it."""

    kind: Literal["ewc"] = "ewc"
    """strength / 2 x sum of F (theta - theta*)^2 over earlier tasks."""


@register("penalty", "ewc", config=EwcConfig, paper="arXiv:1612.00796")
def ewc(config: EwcConfig, context: PenaltyContext) -> ParameterPenalty:
    """Return the penalty for a run that starts from the present parameters."""
    return Measured(config, context, decay=None, unit=0.5)
