"""Direct preference optimisation: the chosen answer gains on the rejected one. Rafailov et al. 2023, arXiv:2305.18290.

The reward of an answer measures how much likelier it has become than under the model before training, the reference:

    r(x, y) = beta (log p(y|x) - log p_ref(y|x))

The loss is that of a classifier which prefers the answer with the higher reward. Instead, `ipo` (arXiv:2310.12036) aims
at a fixed difference of rewards, and `hinge` (SLiC, arXiv:2305.10425) stops at a difference of 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.objectives._loss import Loss, Pairs, pair_metrics
from posttrain.registry import register

__all__ = ["DpoConfig", "dpo"]


class DpoConfig(Config):
    """Preference pairs, compared with the model before training."""

    form: ClassVar[str] = "pairs"
    compares: ClassVar[bool] = True
    """Whether the reference's log-probabilities are needed."""

    kind: Literal["dpo"] = "dpo"
    """Direct preference optimisation."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """`sigmoid` is DPO's own; `ipo` squares the distance to 1/(2 beta); `hinge` is linear up to a margin of 1."""
    beta: float = Field(0.1, gt=0)
    """The cost of moving away from the model before training; in `ipo` the paper's tau."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be the wrong way round (conservative DPO); with `sigmoid` only."""
    reference: Literal["precompute", "adapter"] = "precompute"
    """`precompute`: the reference's log-probabilities are computed once, before the first step, and kept in the run's
    folder. `adapter`: in every step, with the adapter switched off; a tuner without one keeps a frozen copy."""

    @model_validator(mode="after")
    def _smoothing_is_a_classifiers(self) -> DpoConfig:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing belongs to the sigmoid loss; {self.loss} has none")
        return self


@register("objective", "dpo", config=DpoConfig, paper="arXiv:2305.18290")
def dpo(policy: Pairs, reference: Pairs, config: DpoConfig) -> Loss:
    """Return the loss of each pair.

        d = (log p(y_w|x) - log p_ref(y_w|x)) - (log p(y_l|x) - log p_ref(y_l|x))
        sigmoid: - (1 - eps) log sigmoid(beta d) - eps log sigmoid(-beta d)        log 2 before anything has moved
        hinge:   max(0, 1 - beta d)
        ipo:     (d_mean - 1 / (2 beta))^2

    d_mean is d with the mean over an answer's tokens instead of the sum, as IPO's authors computed it and TRL does:
    with sums the target difference would be the same for answers of 3 and of 300 tokens. The rewards in the metrics
    are beta times the log-ratios of sums, for every loss. policy, reference: see `Pairs`.
    """
    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    beta = config.beta
    nats: Tensor
    if config.loss == "ipo":
        distance = chosen / policy.chosen_tokens - rejected / policy.rejected_tokens
        nats = (distance - 1 / (2 * beta)) ** 2
    elif config.loss == "hinge":
        nats = functional.relu(1 - beta * (chosen - rejected))
    else:
        logits, eps = beta * (chosen - rejected), config.label_smoothing
        nats = -(1 - eps) * functional.logsigmoid(logits)
        if eps:
            nats = nats - eps * functional.logsigmoid(-logits)
    return Loss(
        nats, nats.new_ones(nats.shape, dtype=policy.chosen_tokens.dtype), pair_metrics(beta * chosen, beta * rejected)
    )
