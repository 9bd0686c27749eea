"""Attention over a line of tree tokens (`inference/bins.py`), under the name `posttrain_tree` in transformers.

A model with attention that goes through transformers' interface takes a line of tokens as one row, and this function
computes its attention. It supports what layers may have in addition: a sliding window, a soft cap on the scores, a
sink, a prefix of keys and values (`models/prefix.py`). Outside of a line it is `sdpa`, except for steps of decoding
(`inference/step_attention.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from posttrain.inference.bins import Bins, Dense, Line
from posttrain.inference.step_attention import attend_step
from posttrain.inference.tree import Ints
from posttrain.models import prefix

__all__ = ["NAME", "attend", "attending", "by_line", "products", "stepping"]

NAME = "posttrain_tree"
SMALL = 64
"""Largest number of queries and keys for plain products on a CPU in bfloat16. Up to this number they are faster than
torch's flash kernel (1.6x at 30 and 64).
"""
SCORES = 1 << 26
"""Number of scores that plain products compute at once."""

Indices: TypeAlias = slice | Tensor
"""Indices of tokens. A stretch without gaps is a slice, which needs no copy."""


class _Dense(NamedTuple):
    queries: Indices
    keys: Indices
    mask: Tensor | None  # (1, 1, n, m), added to the scores


class _Bins(NamedTuple):
    queries: Tensor  # (B, t), indices in the line
    keys: Tensor  # (B, s)
    mask: Tensor | None  # (B, 1, t, s), added to the scores
    real: Tensor  # (B * t), the flat indices of queries that are not padding
    numbers: Tensor  # the indices of these queries in the line


class _Parts:
    """A line's parts of attention as tensors on the model's device, made once for each window that its layers have.

    `cached` is the number of keys before the line's own. `last` is the index of the last layer, if only the requested
    tokens are read after it; else None."""

    def __init__(self, line: Line, cached: int, device: torch.device, dtype: torch.dtype, last: int | None) -> None:
        self.line, self.cached, self.device, self.dtype, self.last = line, cached, device, dtype, last
        self.made: dict[tuple[int, bool], tuple[list[_Dense], list[_Bins]]] = {}

    def of(self, window: int | None, layer: Any) -> tuple[list[_Dense], list[_Bins]]:
        """Return the parts for a layer with this window: a token sees tokens less than `window` positions before it."""
        reach = 1 + int(self.line.positions.max())
        key = (min(window or reach, reach), self.last is not None and layer.layer_idx == self.last)
        if key not in self.made:
            dense = [made for part in self.line.dense if (made := self._dense(part, *key)) is not None]
            self.made[key] = dense, [self._bins(part, key[0]) for part in self.line.bins]
        return self.made[key]

    def _dense(self, part: Dense, window: int, brief: bool) -> _Dense | None:
        """Return the part without keys that no query sees and without queries that see no key; None if it is empty.
        With `brief`, queries of tokens with no request are left out too."""
        queries, positions = part.queries, self.line.positions
        queries = queries[positions[queries] < len(part.keys) - 1 + window]
        if brief:
            queries = queries[np.isin(queries, self.line.asked.tokens)]
        if not len(queries):
            return None
        at = positions[queries]
        first = max(0, int(at.min()) - window + 1)
        mask = None
        if at.max() - window >= first:
            mask = self._mask((at[:, None] - np.arange(first, len(part.keys)) < window)[None])
        return _Dense(self._indices(queries), self._indices(part.keys[first:]), mask)

    def _bins(self, part: Bins, window: int) -> _Bins:
        seen = part.mask
        queries, keys = (self.line.positions[numbers] for numbers in (part.queries, part.keys))
        if (queries.max(1) - keys.min(1) >= window).any():
            near = queries[:, :, None] - keys[:, None, :] < window
            seen = near & (np.tri(queries.shape[1], dtype=np.bool_) if seen is None else seen)
        real = torch.from_numpy(part.real).reshape(-1).nonzero()[:, 0].to(self.device)
        numbers = torch.from_numpy(part.queries).to(self.device)
        mask = None if seen is None else self._mask(seen)
        own = torch.from_numpy(part.keys).to(self.device)
        return _Bins(numbers, own, mask, real, numbers.reshape(-1)[real])

    def _mask(self, seen: NDArray[np.bool_]) -> Tensor:
        """Turn (B, t, s) into a mask (B, 1, t, s) with 0 where a key is seen."""
        wide = -(-seen.shape[-1] // 8) * 8  # GPU kernels need masks that start every 16 bytes
        mask = torch.full((*seen.shape[:2], wide), torch.finfo(self.dtype).min, dtype=self.dtype)
        return mask[..., : seen.shape[-1]].masked_fill_(torch.from_numpy(seen), 0.0)[:, None].to(self.device)

    def _indices(self, numbers: Ints) -> Indices:
        first, last = int(numbers[0]), int(numbers[-1])
        if last - first + 1 == len(numbers):
            return slice(first, last + 1)
        return torch.from_numpy(numbers).to(self.device)


_parts: ContextVar[_Parts | None] = ContextVar("parts", default=None)


@contextmanager
def attending(
    line: Line, cached: int, device: torch.device, dtype: torch.dtype, *, last: int | None = None
) -> Iterator[None]:
    """Within this block, attention follows the line, for one forward pass. `cached` is the number of keys before the
    line's own. `last` is the index of the layer after which only the requested tokens are read.
    """
    token = _parts.set(_Parts(line, cached, device, dtype, last))
    try:
        yield
    finally:
        _parts.reset(token)


@contextmanager
def by_line(model: PreTrainedModel) -> Iterator[None]:
    """Within this block, the model uses `_attention` below. Raise ValueError if it cannot."""
    was = model.config.get_text_config()._attn_implementation
    try:
        model.set_attn_implementation(prefix.LINE if was in prefix.NAMES else NAME)
        yield
    finally:
        model.set_attn_implementation(was)


def stepping(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Do the same for decoding with a model that becomes faster by it: in bfloat16, on a CPU, with `sdpa` attention."""
    low = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    usual = model.config.get_text_config()._attn_implementation == "sdpa" and model._can_set_attn_implementation()
    return by_line(model) if low and usual else nullcontext()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return attention (1, N, heads, d) for query (1, heads, N, d) and key, value (1, key heads, P + C + N, d). Keys
    and values start with a layer's prefix, then those of the cache. Raise ValueError for attention with position_bias.
    """
    parts, scale = _parts.get(), float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
    window, cap, sink, bias = (kwargs.get(name) for name in ("sliding_window", "softcap", "s_aux", "position_bias"))
    if parts is None:
        step = query.shape[2] == 1 and query.dtype == torch.bfloat16 and query.device.type == "cpu"
        if step and cap is None and sink is None and bias is None and not kwargs.get("dropout"):
            mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
            return attend_step(query, key, value, mask, scale), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0], None
    if bias is not None:
        raise ValueError("attention with position_bias")
    attended = partial(attend, scale=scale, cap=cap)
    dense, bins = parts.of(window, module)
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (N, heads, d)
    count, kinds = len(q), k.shape[1]
    groups = q.shape[1] // kinds
    out = q.new_zeros(count, q.shape[1], v.shape[-1])
    weight = q.new_full(q.shape[:2], 0.0, dtype=torch.float32)  # log-sum-exp of the scores that made `out`
    for many in bins:
        keys, values = (_repeated(one[-count:][many.keys].transpose(1, 2), groups) for one in (k, v))
        part, total = attended(q[many.queries].transpose(1, 2), keys, values, many.mask)
        out[many.numbers] = part.transpose(1, 2).flatten(0, 1)[many.real]
        weight[many.numbers] = total.transpose(1, 2).flatten(0, 1)[many.real]
    added = len(k) - parts.cached - count
    k, v, before = k[added:], v[added:], (k[:added], v[:added])
    seen = [(one.queries, k[one.keys], v[one.keys], one.mask) for one in dense]
    for queries, keys, values, mask in [*seen, *([(slice(0, count), *before, None)] if added else [])]:
        # heads that share keys stand one after the other, as if they were more queries, so that keys are not copied
        asking = q[queries].transpose(0, 1).reshape(1, kinds, -1, q.shape[-1])
        mask = None if mask is None else mask.repeat(1, 1, groups, 1)
        part, total = attended(asking, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], mask, causal=False)
        part = part[0].reshape(kinds * groups, -1, v.shape[-1]).transpose(0, 1)  # (n, heads, d)
        total = total[0].reshape(kinds * groups, -1).transpose(0, 1)  # (n, heads)
        share = torch.sigmoid(total - weight[queries])[..., None].to(part)
        if added or sink is not None:  # otherwise no token is in two of these parts
            weight[queries] = torch.logaddexp(total, weight[queries])
        if isinstance(queries, slice):
            out[queries].lerp_(part, share)
        else:
            out[queries] = torch.lerp(out[queries], part, share)
    if sink is not None:  # a score without a key (gpt-oss): it takes its share
        out *= torch.sigmoid(weight - sink)[..., None].to(out)
    return out[None], None


def _repeated(states: Tensor, groups: int) -> Tensor:
    """Repeat (B, key heads, s, d) to (B, heads, s, d)."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, causal: bool = True, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return attention (B, heads, t, d) and the log-sum-exp of its scores, float32 (B, heads, t). Attention is causal
    without a mask, unless `causal` is False. With `cap`, scores s become cap * tanh(s / cap).
    """
    causal = causal and mask is None
    cpu = q.device.type == "cpu"
    small = cpu and q.dtype == torch.bfloat16 and max(q.shape[2], k.shape[2]) <= SMALL
    if cap is None and not small and (q.shape[-1] == v.shape[-1] or not cpu):
        kernel = fused(q.device.type, q.dtype)
        if kernel is not None:
            return kernel(q, k, v, mask, scale, causal)
    return products(q, k, v, mask, scale, causal, cap)


Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, bool], tuple[Tensor, Tensor]]


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out, total


def _on_cuda(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    bias = None if mask is None else mask.expand(-1, q.shape[1], -1, -1)
    out, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, True, 0.0, causal, scale=scale
    )
    return out, total[..., : q.shape[2]]


@cache
def fused(device: str, dtype: torch.dtype) -> Kernel | None:
    """Return the kernel of torch's `scaled_dot_product_attention` with the log-sum-exp, which torch does not return.

    Return None if this torch has no such kernel, or one that differs from plain products: such kernels are private and
    may change.
    """
    kernel: Kernel | None = {"cpu": _on_cpu, "cuda": _on_cuda}.get(device)
    if kernel is None:
        return None
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 24, 16, generator=draw).to(device, dtype) for _ in range(3))
    mask = torch.zeros(1, 1, 24, 24, device=device, dtype=dtype)
    mask[..., 8:16] = torch.finfo(dtype).min
    try:
        for given, causal in ((mask, False), (None, True), (None, False)):
            for found, expected in zip(
                kernel(q, k, v, given, 0.25, causal), products(q, k, v, given, 0.25, causal), strict=True
            ):
                torch.testing.assert_close(found.float(), expected.float(), atol=0.02, rtol=0.02)
    except (AttributeError, TypeError, RuntimeError, ValueError, AssertionError):
        return None
    return kernel


def products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Do the same as `attend` by plain products, for some queries at a time."""
    outs: list[Tensor] = []
    totals: list[Tensor] = []
    step = max(1, SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    for at in range(0, q.shape[2], step):
        scores = ((q[:, :, at : at + step] * scale) @ k.transpose(-1, -2)).float()
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        if mask is not None:
            scores = scores + mask[:, :, at : at + step]
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1 + at)
            scores = scores.masked_fill(later, -torch.inf)
        totals.append(scores.logsumexp(-1))
        outs.append((scores - totals[-1][..., None]).exp().to(v) @ v)
    return torch.cat(outs, 2), torch.cat(totals, 2)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionInterface.register(prefix.LINE, prefix.over(lambda module: _attention, False))
AttentionMaskInterface.register(prefix.LINE, sdpa_mask)
