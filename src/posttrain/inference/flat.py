"""Attention over a line of tree tokens (`inference/bins.py`), under the name `posttrain_tree` in transformers.

A model whose attention goes through transformers' interface takes a line of tokens as one row; this function attends
for it. Outside of a line it is `sdpa`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from posttrain.inference.bins import FlatLayout
from posttrain.inference.tree import Ints

__all__ = ["NAME", "attending"]

NAME = "posttrain_tree"
SMALL = 64
"""Queries and keys up to which plain products beat torch's flash kernel on a CPU in bfloat16 (1.6x at 30 and 64)."""


Places = slice | Tensor
"""Where tokens stand; a stretch without gaps needs no copy."""


class _Bins(NamedTuple):
    queries: Tensor  # (B, t), places in the line
    keys: Tensor  # (B, s)
    mask: Tensor | None  # (B, 1, t, s), added to the scores
    real: Tensor  # (B * t), which queries are no padding, flat
    places: Tensor  # where those stand in the line


class _Line(NamedTuple):
    """A layout as tensors on the model's device; cached: keys before the line's own; last: the number of the last
    layer, and `brief` what it needs of `dense`, when nobody reads the rest.
    """

    cached: int
    dense: list[tuple[Places, Places]]
    bins: list[_Bins]
    last: int | None
    brief: list[tuple[Places, Places]]


_line: ContextVar[_Line | None] = ContextVar("line", default=None)


@contextmanager
def attending(
    layout: FlatLayout, cached: int, device: torch.device, dtype: torch.dtype, *, last: int | None = None
) -> Iterator[None]:
    """Attention as the layout says, for one forward pass of its line; last: the layer after which only the places that
    are asked are read.
    """
    bins = []
    for each in layout.bins:
        real = torch.from_numpy(each.real).reshape(-1)
        queries = torch.from_numpy(each.queries)
        mask = None
        if each.mask is not None:
            wide = -(-each.mask.shape[-1] // 8) * 8  # GPU kernels want masks that start every 16 bytes
            mask = torch.full((*each.mask.shape[:2], wide), torch.finfo(dtype).min, dtype=dtype)
            mask = mask[..., : each.mask.shape[-1]].masked_fill_(torch.from_numpy(each.mask), 0.0)[:, None].to(device)
        keys = torch.from_numpy(each.keys).to(device)
        flat = real.nonzero()[:, 0]
        bins.append(_Bins(queries.to(device), keys, mask, flat.to(device), queries.reshape(-1)[flat].to(device)))
    dense = [(_places(d.queries, device), _places(d.keys, device)) for d in layout.dense]
    brief = []
    for d in layout.dense if last is not None else ():
        asked = d.queries[np.isin(d.queries, layout.asked.places)]
        if len(asked):
            brief.append((_places(asked, device), _places(d.keys, device)))
    token = _line.set(_Line(cached, dense, bins, last, brief))
    try:
        yield
    finally:
        _line.reset(token)


def _places(numbers: Ints, device: torch.device) -> Places:
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first + 1 == len(numbers):
        return slice(first, last + 1)
    return torch.from_numpy(numbers).to(device)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query (1, heads, N, d); key, value (1, key heads, P + N, d), the cache's first -> (1, N, heads, d)."""
    line = _line.get()
    if line is None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out, None
    unknown = [name for name in ("softcap", "position_bias", "s_aux") if kwargs.get(name) is not None]
    if unknown:
        raise ValueError(f"attention with {unknown[0]}")
    scaling = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (N, heads, d)
    kinds = k.shape[1]
    groups = q.shape[1] // kinds
    out = q.new_zeros(q.shape[0], q.shape[1], v.shape[-1])
    weight = q.new_full(q.shape[:2], 0.0, dtype=torch.float32)  # log-sum-exp of the scores behind `out`
    own_k, own_v = k[line.cached :], v[line.cached :]
    for bins in line.bins:
        part, total = attend(
            q[bins.queries].transpose(1, 2),
            _repeated(own_k[bins.keys].transpose(1, 2), groups),
            _repeated(own_v[bins.keys].transpose(1, 2), groups),
            bins.mask,
            scale,
        )
        out[bins.places] = part.transpose(1, 2).flatten(0, 1)[bins.real]
        weight[bins.places] = total.transpose(1, 2).flatten(0, 1)[bins.real]
    for queries, keys in line.brief if module.layer_idx == line.last else line.dense:
        asking = q[queries]
        count = len(asking)
        # the heads that share keys stand one after the other: no mask, so they may as well be more queries
        asking = asking.transpose(0, 1).reshape(1, kinds, groups * count, -1)
        part, total = attend(
            asking, k[keys].transpose(0, 1)[None], v[keys].transpose(0, 1)[None], None, scale, causal=False
        )
        part = part[0].reshape(kinds * groups, count, -1).transpose(0, 1)  # (n, heads, d)
        total = total[0].reshape(kinds * groups, count).transpose(0, 1)  # (n, heads)
        share = torch.sigmoid(total - weight[queries])[..., None].to(part)
        if isinstance(queries, slice):
            out[queries].lerp_(part, share)
        else:
            out[queries] = torch.lerp(out[queries], part, share)
    return out[None], None


def _repeated(states: Tensor, groups: int) -> Tensor:
    """(B, key heads, s, d) -> (B, heads, s, d)."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, causal: bool = True
) -> tuple[Tensor, Tensor]:
    """Attention (B, heads, t, d) and the log-sum-exp of its scores, float32 (B, heads, t); causal without a mask.

    The kernels behind `scaled_dot_product_attention`, which keeps the second to itself.
    """
    causal = causal and mask is None
    small = q.dtype == torch.bfloat16 and max(q.shape[2], k.shape[2]) <= SMALL
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and not small:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, total
    if q.device.type == "cuda":
        bias = None if mask is None else mask.expand(-1, q.shape[1], -1, -1)
        out, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, 0.0, causal, scale=scale
        )
        return out, total[..., : q.shape[2]]
    scores = ((q * scale) @ k.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = scores.masked_fill(
            torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -torch.inf
        )
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(v) @ v, total


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
