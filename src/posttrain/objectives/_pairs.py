"""Shared by the objectives on compared answers: log-probabilities of both answers, and metrics of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pairs", "pair_metrics"]


class Pairs(NamedTuple):
    """Log-probabilities of the chosen and the rejected answers, in nats, summed over their tokens, (B,) each; and the
    number of these tokens, (B,) each, integers. The token that ends an answer is one of its tokens.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def per_token(self) -> Pairs:
        """The same with means in place of sums."""
        chosen, rejected = self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens
        return self._replace(chosen=chosen, rejected=rejected)


def pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Metrics of rewards or scores, (B,) each: both, their distance, and whether the chosen answer has the higher."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "margin": chosen - rejected,
        "accuracy": (chosen > rejected).to(torch.float32),
    }
