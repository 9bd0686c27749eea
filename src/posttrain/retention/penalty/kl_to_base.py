"""Keep the model's outputs close to those before training, by a divergence between the two.

    weight x sum over supervised positions of KL(base || tuned), divided by the number of the step's tokens

On replayed rows this is Learning without Forgetting (Li & Hoiem 2016, arXiv:1606.09282). On new rows it limits the
quantity that predicts forgetting best (RL's Razor, arXiv:2509.04259). It is a loss term on logits, so every micro batch
needs a forward pass of the model before training.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from posttrain.data.chat import IGNORED
from posttrain.inference.divergence import kl_nats, log_probabilities
from posttrain.registry import register
from posttrain.retention.penalty._base import PenaltyConfig

__all__ = ["KlToBaseConfig", "kl_to_base"]


class KlToBaseConfig(PenaltyConfig):
    """Penalise outputs that leave those of the model before training."""

    acts_on: ClassVar[Literal["parameters", "logits"]] = "logits"

    kind: Literal["kl_to_base"] = "kl_to_base"
    """Divergence from the model before training."""
    weight: float = Field(default=1.0, gt=0)
    """How much a nat of divergence weighs beside a nat of loss."""
    on: Literal["all", "new", "old"] = "all"
    """On which rows: all, the new ones, or the replayed ones."""
    direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(base || tuned); reverse: KL(tuned || base)."""


@register("penalty", "kl_to_base", config=KlToBaseConfig, paper="arXiv:1606.09282")
def kl_to_base(logits: Tensor, base_logits: Tensor, targets: Tensor, old: Tensor, config: KlToBaseConfig) -> Tensor:
    """Return the weighted divergence of each row, summed over its supervised positions, (B,).

    It is exactly 0 before the first update. logits, base_logits: (B, K, V); targets: (B, K), -100 for positions that
    are not supervised; old: (B,) bool, whether a row is a replayed one.
    """
    asked = targets != IGNORED  # (B, K)
    if config.on != "all":
        asked = asked & (old if config.on == "old" else ~old)[:, None]
    now, base = log_probabilities(logits[asked]), log_probabilities(base_logits[asked])  # (N, V)
    nats = kl_nats(base, now) if config.direction == "forward" else kl_nats(now, base)  # (N,)
    row = asked.nonzero()[:, 0]
    return config.weight * nats.new_zeros(len(targets), dtype=nats.dtype).index_add(0, row, nats)
