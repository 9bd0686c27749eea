"""Compute causal attention over short rows in bfloat16 on a CPU, forward and backward, by plain matrix products.

    S = s Q K^T, masked;   P = softmax(S);   O = P V
    dV = P^T dO,   dP = dO V^T,   dS = P (dP - sum(dP P)),   dQ = s dS K,   dK = s dS^T Q

torch's flash kernel cuts rows into blocks of its own and is slow for short rows on processors without AMX. For forward
and backward over 16 rows of 64 tokens (9 heads, 2 cores of a Zen 5) it takes 10.4 ms in bfloat16 and 5.5 ms in float32,
and the products above take 2.4 ms. Rows longer than `LONGEST` and rows with a mask of their own use `sdpa`. P is kept
for the backward pass: 2 x heads x T bytes per token and layer.
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
"""Name of `attend` among the attention functions of transformers."""
WATCHED = "posttrain_watched"
"""Name of the attention function that records calls for `watched`."""
LONGEST = 256
"""Maximum tokens of a row for which plain products are used. They are faster than the flash kernel for such rows."""


class ShortAttention(torch.autograd.Function):
    """Causal attention: query (B, heads, T, d); key, value (B, key heads, T, d) -> (B, heads, T, d). Query heads that
    share a key head are neighbours, so they are computed as additional queries of the same keys.
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
        ctx.scale = scale
        return torch.bmm(shares, v).view(batch, heads, length, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, shares = ctx.saved_tensors
        given = gradients[0]
        batch, _, length, width = given.shape
        out = given.reshape(len(q), -1, width)
        value = torch.bmm(shares.transpose(1, 2), out)
        scores = torch._softmax_backward_data(torch.bmm(out, v.transpose(1, 2)), shares, -1, shares.dtype)
        query = torch.bmm(scores, k).mul_(ctx.scale)
        key = torch.bmm(scores.transpose(1, 2), q)
        return *(part.view(batch, -1, length, part.shape[-1]) for part in (query, key, value)), None


short_attention: Callable[[Tensor, Tensor, Tensor, float], Tensor] = ShortAttention.apply


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend as an attention function of transformers: query (B, heads, T, d) -> (B, T, heads, d)."""
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    short = low == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] == key.shape[2] <= LONGEST
    if not short or not _plain(module, attention_mask, kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0], None
    scaling = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return short_attention(query.to(low), key.to(low), value.to(low), scale).transpose(1, 2), None


def _plain(module: Any, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Return whether a call needs only causal attention and a scale."""
    return (
        attention_mask is None
        and not kwargs.get("dropout")
        and kwargs.get("is_causal") is not False
        and bool(module.is_causal)
        and all(kwargs.get(name) is None for name in ("softcap", "position_bias", "s_aux", "sliding_window"))
    )


_watching: list[dict[nn.Module, tuple[Tensor, Tensor, Tensor, bool]]] = []
"""The records of the active `watched` contexts; the innermost is last."""


def _attend_watched(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    plain = module not in _watching[-1] and _plain(module, attention_mask, kwargs)
    plain = plain and kwargs.get("scaling") == module.scaling
    _watching[-1][module] = (query, key, value, plain)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0], None


@contextlib.contextmanager
def _attending_by(name: str, core: Any) -> Iterator[bool]:
    """Make a model with `sdpa` attention use the attention function of this name during the block. Yield False, and
    change nothing, for a model that does not use transformers' attention interface."""
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
    """Record the calls of the attention modules of a model with `sdpa` attention.

    Yield module -> query, key, value, and whether the module made one call for plain causal attention with
    `module.scaling`. The mapping is empty for a model that does not use transformers' attention interface.
    """
    _watching.append({})
    try:
        with _attending_by(WATCHED, core):
            yield _watching[-1]
    finally:
        _watching.pop()


def attending_briefly(model: nn.Module) -> contextlib.AbstractContextManager[bool]:
    """Compute attention over short rows as above during the block; yield False for models without `sdpa` attention."""
    core = core_of(model)
    usual = core.config.get_text_config()._attn_implementation == "sdpa"
    return _attending_by(NAME, core) if usual else contextlib.nullcontext(False)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionInterface.register(WATCHED, _attend_watched)
AttentionMaskInterface.register(WATCHED, sdpa_mask)
