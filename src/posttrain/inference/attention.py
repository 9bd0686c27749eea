"""How a model reads a tree: rows share a cache, branches are kept apart, and only requested logits are computed.

A trial finds out what a model can read, once per model, by comparing a few random tokens with plain forward passes:

    flat     a line of tokens without padding, attention split into parts (models with attention that goes
             through transformers' interface)
    prefix   a cache shared by rows of one branch each (attention of the model's own, positions that come from the mask,
             such as ALiBi)
    plain    every row alone (recurrent layers, attention that looks ahead)

The cache keeps all keys, so sharing stays right where texts are longer than a sliding window.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from posttrain.inference.bins import Line, lay_line, straight
from posttrain.inference.flat import attending, by_line
from posttrain.inference.last_layer import feeding_only, indices
from posttrain.inference.tree import Asked, Crop, Grow, Ints, Layout, Step, Tree, lay_out
from posttrain.models.logits import core_of

__all__ = ["PrefixCache", "Reading", "Support", "forward", "numbers_of", "read"]


class Support(NamedTuple):
    """What a model can read. `batched` says that rows of unequal length may be padded. `brief` says that the last layer
    may leave out tokens with no request. `reason` states why branches cannot share a line.
    """

    kind: Literal["flat", "prefix", "plain"]
    batched: bool = True
    brief: bool = False
    reason: str = ""


def numbers_of(model: Any) -> dict[str, Any]:
    """Return the text configuration as a dictionary."""
    found: dict[str, Any] = core_of(model).config.get_text_config().to_dict()
    return found


class _SharedLayer(DynamicLayer):
    """Keys and values of one prefix, (1, heads, P, d). A batch reads them as if each row had them, and adds nothing."""

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
    """A stack of shared tokens: a forward pass of one row adds to it, batches read it, and `cut` shortens it."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_SharedLayer)
        self.length = 0

    def grow(self, growing: bool) -> None:
        """Set whether the next forward pass adds to the cache."""
        for layer in self.layers:
            layer.growing = growing

    def cut(self, length: int) -> None:
        """Remove all but the first `length` tokens."""
        self.crop(length - self.length)
        self.length = length


@contextmanager
def _only(model: Any, index: Tensor, width: int) -> Iterator[bool]:
    """Within this block, the output head gets only the hidden states of the requested tokens, as (1, N, H).

    Yield False if there is no head. Whatever the model does with logits after the head (soft caps, scales) is done to
    these logits. Hidden states may be wider than the row, because of virtual tokens before it."""
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
    """Return the states (B, T, H) at flat indices of (B, width), as (1, N, H)."""
    return states.flatten(0, 1)[indices(index, width, states)][None]


def forward(model: Any, ids: Tensor, index: Tensor, *, brief: bool = False, **inputs: Any) -> Tensor:
    """Return logits (N, V) at the flat indices `index` of the rows `ids` (B, T). With `brief`, nothing is computed for
    other tokens after the last layer's keys and values.
    """
    inputs.setdefault("use_cache", inputs.get("past_key_values") is not None)
    feeding = feeding_only(model, index, ids.shape[1]) if brief else nullcontext()
    with feeding, _only(model, index, ids.shape[1]) as gathered:
        logits: Tensor = model(input_ids=ids, **inputs).logits
    return (logits if gathered else _gather(logits, index, ids.shape[1]))[0]


class Reading(NamedTuple):
    """Requested logits (N, V) of one forward pass, and its cost. `forwarded` counts tokens with padding, `tokens` those
    read for the first time, and `shared` the nodes read for several requests or branches.
    """

    logits: Tensor
    asked: Asked
    forwarded: int
    tokens: int
    shared: int


@torch.inference_mode()
def read(
    model: Any, tree: Tree, steps: Iterable[Step], support: Support, *, answers: int, tokens: int
) -> Iterator[Reading]:
    """Follow a plan and yield a reading for each forward pass. `answers` is the largest number of tokens with logits at
    once. `tokens` is the largest number of tokens that the cache grows by at once.
    """
    cache = PrefixCache()
    done: set[int] = set()
    line = support.kind == "flat"
    with by_line(core_of(model)) if line else nullcontext():
        for step in steps:
            if isinstance(step, Crop):
                cache.cut(step.length)
            elif isinstance(step, Grow):
                yield from _grown(model, lay_out(tree, [step.nodes], done), cache, support, answers, tokens)
            elif line:
                laid = lay_line(tree, step.rows[0], cache.length, done)
                logits = _in_line(model, laid, cache, support, grow=False)
                yield Reading(logits, laid.asked, len(laid.ids), len(laid.ids), laid.shared)
            else:
                yield from _in_rows(model, lay_out(tree, step.rows, done), cache, support, answers)


def _index(tokens: Ints) -> Tensor:
    """Return token indices as a tensor that is never empty, because an output head may not accept an empty one."""
    return torch.from_numpy(tokens) if len(tokens) else torch.zeros(1, dtype=torch.long)


def _grown(
    model: Any, layout: Layout, cache: PrefixCache, support: Support, answers: int, tokens: int
) -> Iterator[Reading]:
    """Add one row to the cache, in pieces that respect the limits."""
    asked, width = layout.asked, layout.ids.shape[1]
    begin = 0
    while begin < width:
        first = int(asked.tokens.searchsorted(begin))
        stop = min(width, begin + tokens)
        if first + answers < len(asked.tokens):
            stop = min(stop, int(asked.tokens[first + answers]))
        part = _part(asked, first, int(asked.tokens.searchsorted(stop)), begin)
        ids = layout.ids[:, begin:stop]
        if support.kind == "flat":
            logits = _in_line(model, straight(ids[0], cache.length, part), cache, support, grow=True)
        else:
            cache.grow(True)
            rows = torch.from_numpy(ids).to(core_of(model).device)
            logits = forward(model, rows, _index(part.tokens), brief=support.brief, past_key_values=cache)
        cache.length += stop - begin
        yield Reading(logits, part, stop - begin, stop - begin, int(begin == 0))
        begin = stop


def _in_line(model: Any, line: Line, cache: PrefixCache, support: Support, *, grow: bool) -> Tensor:
    """Return the requested logits of a line that follows the cache. With `grow`, the line is added to the cache."""
    device, dtype = core_of(model).device, core_of(model).dtype
    none = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)  # keeps the model from making a mask
    types = set(numbers_of(model).get("layer_types") or ())
    inputs: dict[str, Any] = {
        "attention_mask": dict.fromkeys(types, none) if types - {"full_attention"} else none,
        "position_ids": torch.from_numpy(line.positions)[None].to(device),
    }
    if cache.length or grow:
        cache.grow(grow)
        inputs["past_key_values"] = cache
    last = core_of(model).config.get_text_config().num_hidden_layers - 1 if support.brief else None
    ids = torch.from_numpy(line.ids)[None].to(device)
    with attending(line, cache.length, device, dtype, last=last):
        return forward(model, ids, _index(line.asked.tokens), brief=support.brief, **inputs)


def _in_rows(model: Any, layout: Layout, cache: PrefixCache, support: Support, answers: int) -> Iterator[Reading]:
    """Read rows that follow the cache. If there are more than `answers` logits, read the rows several times."""
    device = core_of(model).device
    ids = torch.from_numpy(layout.ids).to(device)
    inputs: dict[str, Any] = {}
    if cache.length:
        cache.grow(False)
        inputs["past_key_values"] = cache
    elif support.kind == "plain" and layout.lengths.min() < ids.shape[1]:
        # attention that looks ahead must not see padding
        mask = torch.arange(ids.shape[1])[None] < torch.from_numpy(layout.lengths)[:, None]
        inputs["attention_mask"] = mask.long().to(device)
    for first in range(0, max(1, len(layout.asked.tokens)), answers):
        part = _part(layout.asked, first, first + answers)
        logits = forward(model, ids, _index(part.tokens), brief=support.brief, **inputs)
        fresh = (0, 0) if first else (int(layout.lengths.sum()), layout.shared)
        yield Reading(logits, part, ids.numel(), *fresh)


def _part(asked: Asked, first: int, until: int, begin: int = 0) -> Asked:
    """Return the requests of entries `first` to `until` - 1 of `asked.tokens`, with tokens counted from `begin`."""
    of = (asked.row >= first) & (asked.row < until)
    return Asked(asked.tokens[first:until] - begin, asked.row[of] - first, asked.requests[of], asked.steps[of])
