"""The cache of a running batch: keys and values with room for new tokens, which can be cut and joined by rows.

Every layer keeps all keys. A sliding window is part of the mask, which transformers builds from columns
(`masking_utils.sliding_window_overlay`). Rows are padded on the left and have no holes, so columns are as far apart as
positions, and padding can be cut off or added without changing what a row sees. A cache layer that removes what is
outside the window cannot do that, because rows of different lengths have different windows.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from posttrain.inference.attention import numbers_of
from posttrain.models.added import added_to
from posttrain.models.logits import core_of

__all__ = ["Part", "RunningCache", "expanded", "is_prompt_learning", "why_plain"]

KEEPS_KEYS = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
"""Layers that store keys and values by column and nothing else; their subclasses store more."""


def why_plain(model: Any, longest: int) -> str:
    """Return why a model's cache cannot be cut and joined for texts of up to `longest` tokens; "" if it can."""
    inner = core_of(model)
    if is_prompt_learning(model):
        return "virtual tokens stand in front of every row"
    if inner._is_stateful:
        return "it has recurrent layers"
    part = added_to(inner)
    if part is not None and part.why_alone():
        return part.why_alone()
    taken = inspect.signature(inner.forward).parameters
    if "past_key_values" not in taken:
        return "it has no cache of keys and values"
    if "attention_mask" not in taken:
        return "it takes no mask, so rows can not be padded"
    layers = DynamicCache(config=inner.config).layers
    other = sorted({type(layer).__name__ for layer in layers if type(layer) not in KEEPS_KEYS})
    if other:
        return f"its cache has layers that can not be cut and joined ({', '.join(other)})"
    numbers = numbers_of(model)
    whole = numbers.get("rope_parameters") or {}
    original = numbers.get("original_max_position_embeddings")
    for rope in [value for value in whole.values() if isinstance(value, dict)] or [whole]:  # one per layer type
        own = rope.get("original_max_position_embeddings", original)
        usual = own or numbers.get("max_position_embeddings", 0)
        if rope.get("rope_type") in ("dynamic", "longrope") and longest > usual:
            return f"its positions are scaled by the longest row beyond {usual} tokens"
    return ""


def is_prompt_learning(model: Any) -> bool:
    """Return whether a PEFT wrapper puts virtual tokens before the rows."""
    return core_of(model) is not model and any(config.is_prompt_learning for config in model.peft_config.values())


class _RoomyLayer(DynamicLayer):
    """Keys and values (B, heads, width, d) as a view of a buffer with `room` more columns. A step copies nothing."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor, Tensor | None]], width: int, room: int) -> None:
        super().__init__()
        self.key_room = _joined([(keys, rows) for keys, _, rows in parts], width, room)
        self.value_room = _joined([(values, rows) for _, values, rows in parts], width, room)
        self.dtype, self.device, self.is_initialized = self.key_room.dtype, self.key_room.device, True
        self.width = width
        self._look()

    def _look(self) -> None:
        self.keys, self.values = self.key_room[:, :, : self.width], self.value_room[:, :, : self.width]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.width + key_states.shape[-2]
        self.key_room[:, :, self.width : end] = key_states
        self.value_room[:, :, self.width : end] = value_states
        self.width = end
        self._look()
        return self.keys, self.values


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]], width: int, room: int) -> Tensor:
    """Return the last `width` columns of chosen rows (None: all) of several tensors, stacked and aligned at the right.
    Columns added on the left are zero: they are masked, but a mask does not stop a NaN."""
    first, _ = parts[0]
    count = sum(len(tensor) if rows is None else len(rows) for tensor, rows in parts)
    whole = first.new_empty(count, first.shape[1], width + room, first.shape[3])
    at = 0
    for tensor, rows in parts:
        chosen = tensor[:, :, -width:] if rows is None else tensor[:, :, -width:][rows.to(tensor.device)]
        below = at + len(chosen)
        whole[at:below, :, : width - chosen.shape[2]] = 0
        whole[at:below, :, width - chosen.shape[2] : width] = chosen
        at = below
    return whole


class Part(NamedTuple):
    """A cache and the indices of those of its rows that stay (None: all)."""

    cache: Cache
    rows: Tensor | None


class RunningCache(Cache):
    """Rows of several caches in one cache of `width` columns with room for `room` more. The caches are emptied by
    layers.
    """

    def __init__(self, parts: Sequence[Part], width: int, room: int) -> None:
        layers: list[Any] = []
        for number, each in enumerate(parts[0].cache.layers):
            if each.keys is None:
                layers.append(each)  # reads another layer's keys and values
                continue
            held = [(part.cache.layers[number].keys, part.cache.layers[number].values, part.rows) for part in parts]
            layers.append(_RoomyLayer(held, width, room))
            for part in parts:
                part.cache.layers[number] = DummyLayer()
        super().__init__(layers=layers)


def expanded(prefix: Cache, pads: Tensor) -> DynamicCache:
    """Return a prefix's cache of one row of P columns as a cache of B rows. Row i has pads[i] columns of padding on its
    left and the same number fewer of the prefix's last columns. `pads` is (B,).
    """
    grown = DynamicCache()
    for number, layer in enumerate(prefix.layers):
        if layer.keys is None:
            continue
        columns = (torch.arange(layer.keys.shape[2]) - pads[:, None]).clamp_min(0).to(layer.keys.device)  # (B, P)
        keys, values = (each[0][:, columns].transpose(0, 1) for each in (layer.keys, layer.values))
        grown.update(keys, values, number)
    return grown
