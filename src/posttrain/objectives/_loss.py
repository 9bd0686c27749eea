"""What objectives share: their result, cross-entropy of tokens, and log-probabilities of compared answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.data.tokens import IGNORED

__all__ = ["Loss", "Pairs", "TokenNll", "pair_metrics", "token_cross_entropy"]


class Loss(NamedTuple):
    """Sums, not means, so that the parts of an optimiser step can be added before they are divided.

    nats: the loss of each row, shape (B,), with a gradient; units: what a step's sum is divided by, shape (B,),
    integers: supervised tokens of a row, or 1 for a pair, a document, a graded answer;
    metrics: further sums per row, shape (B,) each and without gradient; divided like the loss when they are logged.
    """

    nats: Tensor
    units: Tensor
    metrics: Mapping[str, Tensor] = {}


class TokenNll(Config):
    """An objective that is `token_cross_entropy` of its rows and nothing else, so that it may be computed token by
    token, without the logits of all positions at once."""


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Loss:
    """Cross-entropy of each supervised token, summed per row, computed in float32.

        nats_b = sum over positions t with y_bt != -100 of: logsumexp(z_bt) - z_bt[y_bt]

    logits: (B, K, V), float; targets: (B, K), the token each position should predict, -100 where nothing is asked.
    Only supervised positions are put through the softmax.
    """
    asked = targets != IGNORED  # (B, K)
    # float64 stays float64 (exactness tests), half precision is raised to float32
    chosen = logits[asked]  # (N, V)
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    nats = functional.cross_entropy(chosen, targets[asked], reduction="none")  # (N,)
    row = asked.nonzero()[:, 0]  # (N,)
    return Loss(nats.new_zeros(len(targets)).index_add(0, row, nats), asked.sum(1))


class Pairs(NamedTuple):
    """Log-probabilities of the chosen and the rejected answers, in nats, summed over their tokens, (B,) each; and the
    number of these tokens, (B,) each, integers. The token that ends an answer is one of its tokens."""

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
