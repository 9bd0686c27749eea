"""Shared by the objectives on tokens: plain token cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.data.chat import IGNORED
from posttrain.objectives._loss import Loss

__all__ = ["TokenNll", "token_cross_entropy"]


class TokenNll(Config):
    """An objective that is `token_cross_entropy` of its rows and nothing else, so that it may be computed token by
    token, without the logits of all positions at once.
    """


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
