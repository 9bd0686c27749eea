"""The distributions of a model before it was changed, kept in little memory: at each position its likeliest tokens and
the mass of all others.

Learning without forgetting, Li & Hoiem 2016, arXiv:1606.09282, on the model's own answers. Kept are the k likeliest
tokens S with their log-probabilities log p_v, in float32, and p_R = 1 - sum over S of p_v. The divergence is that of
the two distributions over k + 1 outcomes, the last of which is "any other token":

    KL(base || model) >= sum over v in S of p_v (log p_v - log q_v) + p_R (log p_R - log q_R)

where q is the softmax over the whole vocabulary. The right side is computed: it is 0 exactly where the left side is 0
on S and its complement, and equal to it when the others keep their proportions. A position takes 8 k + 4 bytes (1 KB at
k = 128), where the whole vocabulary of SmolLM2 would take 197 KB; and no second forward pass is needed in training.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.inference.divergence import log_probabilities

__all__ = ["Remembered", "divergence_from", "nats_and_slope", "remember"]

CHUNK = 128
"""Positions whose gradient is computed together."""
LEAST = 1e-12
"""The least mass that the other tokens are taken to have, so that its logarithm is finite."""


class Remembered(NamedTuple):
    """tokens: (N, k) ids; logps: (N, k) their log-probabilities in nats; rest: (N,) that of all other tokens."""

    tokens: Tensor
    logps: Tensor
    rest: Tensor

    def at(self, rows: slice) -> Remembered:
        """Some of the positions."""
        return Remembered(self.tokens[rows], self.logps[rows], self.rest[rows])


def _rest(logps: Tensor) -> Tensor:
    """log(1 - sum exp logps) of (N, k) -> (N,)."""
    return torch.log((1 - logps.exp().sum(-1)).clamp_min(LEAST))


def remember(logits: Tensor, k: int) -> Remembered:
    """Keep the k likeliest tokens of each position. logits: (N, V)."""
    top = log_probabilities(logits).topk(min(k, logits.shape[-1]), dim=-1)
    return Remembered(top.indices.to(torch.int32), top.values, _rest(top.values))


def divergence_from(before: Remembered, logits: Tensor) -> Tensor:
    """KL(base || model) over the k likeliest tokens of the base and the rest, in nats: (N, V) -> (N,).

    The gradient is computed along with the value, a few positions at a time, so that one tensor of the logits' size is
    held beside them and not four.
    """
    nats: Tensor = _Divergence.apply(logits, *before)  # type: ignore[no-untyped-call]
    return nats


def nats_and_slope(before: Remembered, logits: Tensor, wants: bool) -> tuple[Tensor, Tensor | None]:
    """The divergence (n,) and, where wanted, its gradient by the logits, (n, V):

        q_v - p_v in S,   q_v (1 - p_R / q_R) elsewhere
    """  # fmt: skip
    logps = log_probabilities(logits)
    tokens = before.tokens.long()
    now = logps.gather(-1, tokens)  # (n, k)
    rest = _rest(now)
    nats = (before.logps.exp() * (before.logps - now)).sum(-1) + before.rest.exp() * (before.rest - rest)
    if not wants:
        return nats, None
    slope = logps.exp_().mul_(1 - (before.rest - rest).exp()[:, None])
    return nats, slope.scatter_(-1, tokens, (now.exp() - before.logps.exp()).to(slope))


class _Divergence(torch.autograd.Function):
    """See `divergence_from`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, logps: Tensor, rest: Tensor) -> Tensor:
        before = Remembered(tokens, logps, rest)
        slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        found = []
        for first in range(0, len(logits), CHUNK):
            at = slice(first, first + CHUNK)
            nats, part = nats_and_slope(before.at(at), logits[at], slope is not None)
            found.append(nats)
            if slope is not None and part is not None:
                slope[at] = part
        ctx.save_for_backward(*([slope] if slope is not None else []))
        return torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * given[:, None].to(slope), None, None, None
