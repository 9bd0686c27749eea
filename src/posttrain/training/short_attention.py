"""Causal attention over short rows in bfloat16 on a CPU, forwards and backwards by plain matrix products.

    S = s Q K^T, masked;   P = softmax(S);   O = P V
    dV = P^T dO,   dP = dO V^T,   dS = P (dP - sum(dP P)),   dQ = s dS K,   dK = s dS^T Q

torch's flash kernel cuts rows into blocks of its own and is slow for short ones on processors without AMX: forwards and
backwards over 16 rows of 64 tokens (9 heads, 2 cores of a Zen 5) it takes 10.4 ms in bfloat16, 5.5 in float32, and the
products above 2.4. Rows longer than `LONGEST`, and rows with a mask of their own go to
`sdpa`. P is kept for the way back: 2 x heads x T bytes per token and layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from posttrain.models.logits import core_of

__all__ = ["LONGEST", "NAME", "attend", "attending_briefly", "short_attention", "watched"]

NAME = "posttrain_short"
WATCHED = "posttrain_watched"
LONGEST = 256
"""Tokens of a row up to which plain products are faster than the flash kernel."""


class ShortAttention(torch.autograd.Function):
    """query (B, heads, T, d); key, value (B, key heads, T, d) -> (B, heads, T, d), causal. Heads that share keys stand
    one after the other, so they are more queries of the same keys.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        batch, heads, length, _ = query.shape
        kinds = key.shape[1]
        q = (query * scale).reshape(batch * kinds, -1, query.shape[-1])  # (B k, g T, d)
        k, v = key.reshape(batch * kinds, length, -1), value.reshape(batch * kinds, length, -1)
        above = torch.full((length, length), -torch.inf, dtype=q.dtype).triu_(1)
        scores = torch.bmm(q, k.transpose(1, 2))  # (B k, g T, T)
        scores.view(-1, length, length).add_(above)
        shares = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, shares)
        ctx.scale, ctx.kinds = scale, kinds
        return torch.bmm(shares, v).view(batch, heads, length, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, shares = ctx.saved_tensors
        given = gradients[0]
        batch, heads, length, width = given.shape
        out = given.reshape(len(q), -1, width)
        value = torch.bmm(shares.transpose(1, 2), out)
        scores = torch._softmax_backward_data(torch.bmm(out, v.transpose(1, 2)), shares, -1, shares.dtype)
        query = torch.bmm(scores, k).mul_(ctx.scale)
        key = torch.bmm(scores.transpose(1, 2), q)
        return (
            query.view(batch, heads, length, -1),
            key.view(batch, ctx.kinds, length, -1),
            value.view(batch, ctx.kinds, length, -1),
            None,
        )


short_attention: Callable[[Tensor, Tensor, Tensor, float], Tensor] = ShortAttention.apply


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query (B, heads, T, d) -> (B, T, heads, d). An attention function of transformers."""
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    short = low == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] == key.shape[2] <= LONGEST
    if not short or not _plain(module, attention_mask, kwargs):
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out, None
    scaling = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return short_attention(query.to(low), key.to(low), value.to(low), scale).transpose(1, 2), None


def _plain(module: Any, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Whether nothing but a scale is asked besides causal attention."""
    return (
        attention_mask is None
        and not kwargs.get("dropout")
        and kwargs.get("is_causal") is not False
        and bool(module.is_causal)
        and all(kwargs.get(name) is None for name in ("softcap", "position_bias", "s_aux", "sliding_window"))
    )


_watching: list[dict[nn.Module, tuple[Tensor, Tensor, Tensor, bool]]] = []
"""The watchers, the innermost last."""


def _attend_watched(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    plain = module not in _watching[-1] and _plain(module, attention_mask, kwargs)
    plain = plain and kwargs.get("scaling") == module.scaling
    _watching[-1][module] = (query, key, value, plain)
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out, None


@contextlib.contextmanager
def _attending_by(name: str, core: Any) -> Iterator[bool]:
    """Let a model that attends by `sdpa` attend by a function of this name while this lasts; False for one that does
    not use transformers' interface."""
    try:
        core.set_attn_implementation(name)
    except ValueError:
        yield False
        return
    try:
        yield True
    finally:
        core.set_attn_implementation("sdpa")


@contextlib.contextmanager
def watched(core: Any) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor, Tensor, bool]]]:
    """Record the calls of the attention modules of a model that attends by `sdpa`: query, key, value, and whether a
    module asks once for plain causal attention with `module.scaling`. Empty where a model does not use transformers'
    interface.
    """
    _watching.append({})
    try:
        with _attending_by(WATCHED, core):
            yield _watching[-1]
    finally:
        _watching.pop()


@contextlib.contextmanager
def attending_briefly(model: nn.Module) -> Iterator[bool]:
    """Let short rows be attended as above while this lasts; False for a model whose attention is not `sdpa`."""
    core = core_of(model)
    if core.config.get_text_config()._attn_implementation != "sdpa":
        yield False
        return
    with _attending_by(NAME, core) as works:
        yield works


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionInterface.register(WATCHED, _attend_watched)
AttentionMaskInterface.register(WATCHED, sdpa_mask)
