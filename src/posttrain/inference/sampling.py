"""Choose the next tokens from logits: the likeliest, or drawn with temperature, top_k and top_p."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.errors import PosttrainError

__all__ = ["Sampling", "pick"]


class Sampling(NamedTuple):
    """Settings for choosing tokens.

    Temperature 0 takes the likeliest token. Otherwise a token is drawn from the top_k likeliest ones (0: all), and
    among them from the fewest likeliest ones that together have at least top_p; in this order, as in `model.generate`.
    """

    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0
    top_k: int = 0

    def draws(self, index: int, count: int) -> list[float]:
        """Return the `count` numbers in [0, 1) that decide the answer at an index of the list.

        They come from their own generator and depend on seed and index only. The multipliers are SplitMix64's, so that
        generators of neighbouring indices are far apart.
        """
        mixed = (self.seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) & (1 << 63) - 1
        generator = torch.Generator().manual_seed(mixed)
        return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


def pick(logits: Tensor, sampling: Sampling, uniforms: list[float]) -> Tensor:
    """Return next tokens (B,) from logits (B, V): the largest, or by inverse CDF at each row's own number in [0, 1).
    Raise PosttrainError if logits are not finite.
    """
    top = logits.max(-1)
    if not bool(torch.isfinite(top.values).all()):
        raise PosttrainError("the model gives no finite logits: its weights are broken (training may have diverged)")
    if sampling.temperature == 0:
        return top.indices
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k, -1).values[:, -1:], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scaled.sort(descending=True)
        chances = ordered.softmax(-1)
        beyond = chances.cumsum(-1) - chances >= sampling.top_p  # the tokens before it already have top_p
        beyond[:, 0] = False
        scaled = scaled.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)
    cumulative = torch.softmax(scaled, -1).cumsum(-1)  # (B, V)
    target = torch.tensor(uniforms, device=logits.device)[:, None].to(cumulative) * cumulative[:, -1:]
    # rounding may move the target to the very end, where tokens without any probability may follow
    last = (scaled > -torch.inf).to(torch.uint8).cumsum(-1, dtype=torch.int32).argmax(-1)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True)[:, 0], last)
