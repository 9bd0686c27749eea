"""Attention of a step of decoding in bfloat16 on a CPU: one query per row, by plain matrix products.

torch's flash kernel takes each head of each row for itself: for 32 rows of 80 tokens (9 heads, 2 cores of a Zen 5) 2.3
ms per layer, where two batched products and a softmax in float32 take 0.4. Heads that share keys are more queries of
the same keys, so these are not copied. In float32 nothing changes: answers there stay what they are, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from posttrain.inference.attention import core

__all__ = ["NAME", "attend_step", "stepping"]

NAME = "posttrain_step"
OTHER = ("softcap", "position_bias", "s_aux")
"""What some models' attention has besides."""


def attend_step(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """query (B, heads, 1, d); key, value (B, key heads, S, d); mask (B or 1, 1, 1, S), True or 0 where a key is seen ->
    (B, 1, heads, d).
    """
    rows, heads, _, width = query.shape
    kinds = key.shape[1]
    asking = (query.float() * scale).view(rows, kinds, heads // kinds, width)
    scores = torch.matmul(
        asking, key.float().transpose(2, 3)
    )  # (B, key heads, g, S); in bfloat16 50 would be 50 +- 0.1
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    shares = torch.softmax(scores, -1).to(value.dtype)  # (B, key heads, g, S)
    return torch.matmul(shares, value).view(rows, 1, heads, value.shape[-1])


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query (B, heads, T, d) -> (B, T, heads, d)."""
    one = query.shape[2] == 1 and key.device.type == "cpu" and not kwargs.get("dropout")
    if not one or any(kwargs.get(name) is not None for name in OTHER):
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out, None
    scaling = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
    return attend_step(query, key, value, mask, scale), None


@contextmanager
def stepping(model: Any) -> Iterator[None]:
    """Steps of a model that is bfloat16, on a CPU, and attends by `sdpa` go the way above for as long as this lasts."""
    inner = core(model)
    fits = inner.dtype == torch.bfloat16 and inner.device.type == "cpu"
    if not fits or inner.config.get_text_config()._attn_implementation != "sdpa":
        yield
        return
    try:
        inner.set_attn_implementation(NAME)
    except ValueError:  # attention that does not go through transformers' interface
        yield
        return
    try:
        yield
    finally:
        inner.set_attn_implementation("sdpa")


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
