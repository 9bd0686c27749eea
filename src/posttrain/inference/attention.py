"""How a model reads a tree: masks that keep branches apart, a cache that rows share, logits only where asked.

What a model can take is found by trial, once per model, on a few random tokens against plain forward passes:

    flat     a line of tokens without padding, attention taken apart (models whose attention goes through transformers'
             interface, texts within the sliding window)
    tree     a 4-D mask and restarted positions: branches share a row (rotary and learned positions)
    prefix   a cache shared by rows of one branch each (positions that come from the mask, such as ALiBi)
    plain    every row for itself (recurrent layers, attention that looks ahead)

A sliding window is part of the mask: position p sees q while p - q is smaller than the window. The cache keeps all
keys, so sharing stays right beyond the window too.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from posttrain.inference.bins import Flat, FlatLayout, lay_flat
from posttrain.inference.flat import NAME, attending
from posttrain.inference.last_layer import feeding_only
from posttrain.inference.tree import Asked, Batch, Crop, Grow, Layout, Step, Tree, lay_out

__all__ = ["PrefixCache", "Reading", "Support", "core", "forward", "numbers_of", "read", "tree_mask"]

Form = Literal["types", "window", "full"]


class Support(NamedTuple):
    """What a model can take. form: a mask per layer type, one mask with the window, one without; batched: rows of
    unequal length may be padded; brief: the last layer may leave out what nobody asks for; reason: why branches cannot
    share a row.
    """

    kind: Literal["flat", "tree", "prefix", "plain"]
    form: Form = "full"
    batched: bool = True
    brief: bool = False
    reason: str = ""


def core(model: Any) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    if isinstance(model, PreTrainedModel):
        return model
    inner: PreTrainedModel = model.get_base_model()
    return inner


def numbers_of(model: Any) -> dict[str, Any]:
    """The text configuration as a dictionary."""
    found: dict[str, Any] = core(model).config.get_text_config().to_dict()
    return found


class _SharedLayer(DynamicLayer):
    """Keys and values of one prefix, (1, heads, P, d); a batch reads them as if each row had them, and adds nothing."""

    growing = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.growing or self.keys is None:
            grown: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return grown
        rows = len(key_states)
        keys = torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2)
        values = torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2)
        return keys, values


class PrefixCache(Cache):
    """A stack of what is shared: grows by a forward pass of one row, is read by batches, is cut on the way back."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_SharedLayer)
        self.length = 0

    def grow(self, growing: bool) -> None:
        """Whether the next forward pass adds to what is kept."""
        for layer in self.layers:
            layer.growing = growing

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.crop(length - self.length)
        self.length = length


def tree_mask(layout: Layout, cached: int, *, window: int | None = None, chunk: int | None = None) -> Tensor:
    """Which keys each place sees: boolean, (rows, 1, width, cached + width).

    A place sees the whole cached prefix, its ancestors in the row and what is before it in its own branch; with a
    window, only positions less than `window` behind its own; with chunks, only positions of its own chunk.
    """
    last = torch.from_numpy(layout.last)  # (B, T)
    own = torch.from_numpy(layout.positions)  # (B, T)
    place = torch.arange(last.shape[1])
    seen = (place[None, :] <= place[:, None]) & (place[:, None] < last[:, None, :])  # (B, T, T)
    before = torch.arange(cached).expand(len(last), -1)  # (B, P)
    theirs = torch.cat([before, own], 1)[:, None, :]  # (B, 1, P + T)
    mask = torch.cat([torch.ones(*seen.shape[:2], cached, dtype=torch.bool), seen], 2)  # (B, T, P + T)
    if window is not None:
        mask &= own[:, :, None] - theirs < window
    if chunk is not None:
        mask &= own[:, :, None] // chunk == theirs // chunk
    return mask[:, None]


def _masks(model: Any, layout: Layout, cached: int, form: Form) -> Tensor | dict[str, Tensor]:
    """The mask in the shape that the model takes."""
    config = numbers_of(model)
    window, chunk = config.get("sliding_window"), config.get("attention_chunk_size")
    inner = core(model)
    dtype = inner.dtype

    def made(mask: Tensor) -> Tensor:
        mask = mask.to(inner.device)
        if inner.config.get_text_config()._attn_implementation in ("sdpa", NAME):
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

    if form == "full":
        return made(tree_mask(layout, cached))
    if form == "window":
        return made(tree_mask(layout, cached, window=window))
    by_type: dict[str, Tensor] = {}
    for kind in set(config["layer_types"]):
        by_type[kind] = made(
            tree_mask(
                layout,
                cached,
                window=window if "sliding" in kind else None,
                chunk=chunk if "chunked" in kind else None,
            )
        )
    return by_type


@contextmanager
def _only(model: Any, index: Tensor, width: int) -> Iterator[bool]:
    """The output head sees the hidden states of the asked places only, as (1, N, H); False when there is no head.

    Whatever the model does with logits after the head (soft caps, scales) is done to these. Hidden states may be
    wider than the row: virtual tokens in front of it.
    """
    head: nn.Module | None = model.get_output_embeddings()
    if head is None:
        yield False
        return

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_gather(args[0], index, width), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield True
    finally:
        handle.remove()


def _gather(states: Tensor, index: Tensor, width: int) -> Tensor:
    """(B, width', H) at flat places of (B, width) -> (1, N, H); what is in front of the row is skipped."""
    index = index.to(states.device)
    extra = states.shape[1] - width
    at = index // width * states.shape[1] + extra + index % width
    return states.reshape(-1, states.shape[-1])[at][None]


def forward(model: Any, ids: Tensor, index: Tensor, *, brief: bool = False, **inputs: Any) -> Tensor:
    """Logits (N, V) at the flat places `index` of the rows `ids` (B, T); brief: and nothing after the last keys and
    values elsewhere.
    """
    inputs.setdefault("use_cache", inputs.get("past_key_values") is not None)
    feeding = feeding_only(model, index, ids.shape[1]) if brief else nullcontext()
    with feeding, _only(model, index, ids.shape[1]) as gathered:
        logits: Tensor = model(input_ids=ids, **inputs).logits
    return (logits if gathered else _gather(logits, index, ids.shape[1]))[0]


class Reading(NamedTuple):
    """Logits (N, V) of what was asked in one forward pass; what it took: places forwarded, padding counted; tokens read
    for the first time; nodes read for several.
    """

    logits: Tensor
    asked: Asked
    forwarded: int
    tokens: int
    shared: int


@torch.inference_mode()
def read(
    model: Any, tree: Tree, steps: Iterable[Step | Flat], support: Support, *, answers: int, tokens: int
) -> Iterator[Reading]:
    """Follow a plan. answers: logits of so many places at most at once; tokens: so many in one growth of the cache."""
    cache = PrefixCache()
    done: set[int] = set()
    for step in steps:
        if isinstance(step, Crop):
            cache.cut(step.length)
        elif isinstance(step, Grow):
            yield from _grown(model, lay_out(tree, [step.nodes], done), cache, support, answers, tokens)
        elif isinstance(step, Flat):
            yield _flat(model, lay_flat(tree, step.nodes, cache.length, done), cache, support)
        elif isinstance(step, Batch):
            yield from _batch(model, lay_out(tree, step.rows, done), cache, support, answers)


def _grown(
    model: Any, layout: Layout, cache: PrefixCache, support: Support, answers: int, tokens: int
) -> Iterator[Reading]:
    """One row onto the cache, in pieces that keep to the limits."""
    places, width = layout.asked.places, layout.ids.shape[1]
    device = core(model).device
    begin = 0
    while begin < width:
        first = int(places.searchsorted(begin))
        stop = min(width, begin + tokens)
        if first + answers < len(places):
            stop = min(stop, int(places[first + answers]))
        until = int(places.searchsorted(stop))
        index = torch.from_numpy(places[first:until] - begin if until > first else places[:0])
        if not len(index):
            index = torch.zeros(1, dtype=torch.long)  # a head may not take nothing
        cache.grow(True)
        ids = torch.from_numpy(layout.ids[:, begin:stop]).to(device)
        logits = forward(model, ids, index, brief=support.brief, past_key_values=cache)
        cache.length += stop - begin
        yield Reading(logits, _part(layout.asked, first, until), stop - begin, stop - begin, int(begin == 0))
        begin = stop


def _flat(model: Any, layout: FlatLayout, cache: PrefixCache, support: Support) -> Reading:
    """A line of tokens over the cache."""
    device, dtype = core(model).device, core(model).dtype
    none = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)  # keeps the model from making a mask
    types = numbers_of(model).get("layer_types") or ()
    inputs: dict[str, Any] = {
        "attention_mask": dict.fromkeys(types, none) if support.form == "types" else none,
        "position_ids": torch.from_numpy(layout.positions)[None].to(device),
    }
    if cache.length:
        cache.grow(False)
        inputs["past_key_values"] = cache
    places = layout.asked.places
    index = torch.from_numpy(places) if len(places) else torch.zeros(1, dtype=torch.long)
    last = core(model).config.get_text_config().num_hidden_layers - 1 if support.brief else None
    with attending(layout, cache.length, device, dtype, last=last):
        logits = forward(model, torch.from_numpy(layout.ids)[None].to(device), index, brief=support.brief, **inputs)
    return Reading(logits, layout.asked, len(layout.ids), len(layout.ids), layout.shared)


def _batch(model: Any, layout: Layout, cache: PrefixCache, support: Support, answers: int) -> Iterator[Reading]:
    device = core(model).device
    ids = torch.from_numpy(layout.ids).to(device)
    inputs: dict[str, Any] = {}
    if cache.length:
        cache.grow(False)
        inputs["past_key_values"] = cache
    if not layout.straight:
        inputs["attention_mask"] = _masks(model, layout, cache.length, support.form)
        inputs["position_ids"] = torch.from_numpy(layout.positions).to(device)
    elif (
        support.kind == "plain" and layout.lengths.min() < ids.shape[1]
    ):  # attention that looks ahead must not see pads
        mask = torch.arange(ids.shape[1])[None] < torch.from_numpy(layout.lengths)[:, None]
        inputs["attention_mask"] = mask.long().to(device)
    places = layout.asked.places
    for first in range(0, max(1, len(places)), answers):
        until = min(first + answers, len(places))
        index = torch.from_numpy(places[first:until]) if until else torch.zeros(1, dtype=torch.long)
        logits = forward(model, ids, index, brief=support.brief, **inputs)
        fresh = (0, 0) if first else (int(layout.lengths.sum()), layout.shared)
        yield Reading(logits, _part(layout.asked, first, until), ids.numel(), *fresh)


def _part(asked: Asked, first: int, until: int) -> Asked:
    """What is asked at places number first to until."""
    if first == 0 and until == len(asked.places):
        return asked
    of = (asked.row >= first) & (asked.row < until)
    return Asked(asked.places[first:until], asked.row[of] - first, asked.requests[of], asked.steps[of])
