"""Keep the distributions of a model before training in little memory: likeliest tokens and mass of all others.

Learning without forgetting, Li & Hoiem 2016, arXiv:1606.09282, on the model's own answers. For each position this keeps
the k likeliest tokens S with their log-probabilities log p_v, in float32, and p_R = 1 - sum over S of p_v. The
divergence is that of the two distributions over k + 1 outcomes; the last outcome is "any other token":

    KL(base || model) >= sum over v in S of p_v (log p_v - log q_v) + p_R (log p_R - log q_R)

where q is the softmax over the whole vocabulary. The right side is computed. It is 0 exactly where the left side is 0
on S and its complement, and it equals the left side if the other tokens keep their proportions. A position takes
8 k + 4 bytes (1 KB at k = 128), while the whole vocabulary of SmolLM2 would take 197 KB, and training needs no second
forward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.inference.divergence import log_probabilities, of_others

__all__ = ["Remembered", "divergence_from", "nats_and_slope", "remember"]

CHUNK = 128
"""Number of positions for which the gradient is computed together."""


class Remembered(NamedTuple):
    """tokens: (N, k) ids; logps: (N, k) their log-probabilities in nats; rest: (N,) log-probability of all others."""

    tokens: Tensor
    logps: Tensor
    rest: Tensor

    def at(self, rows: slice) -> Remembered:
        """Return the part of the positions that the slice selects."""
        return Remembered(self.tokens[rows], self.logps[rows], self.rest[rows])


def remember(logits: Tensor, k: int) -> Remembered:
    """Keep the k likeliest tokens of each position. logits: (N, V)."""
    top = log_probabilities(logits).topk(min(k, logits.shape[-1]), dim=-1)
    return Remembered(top.indices.to(torch.int32), top.values, of_others(top.values))


def divergence_from(before: Remembered, logits: Tensor) -> Tensor:
    """Return KL(base || model) over the k likeliest tokens of the base and the rest, in nats: (N, V) -> (N,).

    The gradient is computed together with the value, a few positions at a time. In this way only one more tensor of the
    logits' size is held, and not four.
    """
    nats: Tensor = _Divergence.apply(logits, *before)  # type: ignore[no-untyped-call]
    return nats


def nats_and_slope(before: Remembered, logits: Tensor, wants: bool) -> tuple[Tensor, Tensor | None]:
    """Return the divergence (n,) and, if `wants`, its gradient with respect to the logits, (n, V):

        q_v - p_v in S,   q_v (1 - p_R / q_R) elsewhere
    """  # fmt: skip
    logps = log_probabilities(logits)
    tokens = before.tokens.long()
    now = logps.gather(-1, tokens)  # (n, k)
    rest = of_others(now)
    nats = (before.logps.exp() * (before.logps - now)).sum(-1) + before.rest.exp() * (before.rest - rest)
    if not wants:
        return nats, None
    slope = logps.exp_().mul_(1 - (before.rest - rest).exp()[:, None])
    return nats, slope.scatter_(-1, tokens, (now.exp() - before.logps.exp()).to(slope))


class _Divergence(torch.autograd.Function):
    """The autograd function of `divergence_from`."""

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
