"""Settings of a merge that may differ by model and by tensor: a number, a gradient over the layers, or filters.

weight: 0.8                                         # of every model, in every tensor
weight: [0, 0.5, 1]                                 # 0 in the first layer, 0.5 in the middle, 1 in the last
weight: [{filter: self_attn, value: [0, 1]}, {value: 0.5}]    # the first filter that a tensor's name contains
weight: {math: 0.8, code: [0, 1]}                   # by model, each as above
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import isfinite
from typing import Annotated, NamedTuple

from pydantic import Field

from posttrain.config.base import Config

__all__ = [
    "Filtered",
    "Graded",
    "Number",
    "PerModel",
    "Place",
    "fits",
    "is_embedding",
    "is_head",
    "patterns_of",
    "place_of",
    "value_of",
]

Number = Annotated[float, Field(allow_inf_nan=False)]
Gradient = Annotated[list[Number], Field(min_length=1)]


class Filtered(Config):
    """A value for the tensors that a filter fits."""

    filter: str = "*"
    """A part of a tensor's name, or a pattern for the whole of it with * and ?."""
    value: Number | Gradient
    """A number, or a gradient over the layers."""


Graded = Number | Gradient | Annotated[list[Filtered], Field(min_length=1)]
"""A number, a gradient (its values evenly over the layers, in lines between them), or filters, of which the first that
fits counts."""
PerModel = Graded | dict[str, Graded]
"""The same for all models, or by model."""

LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h|block)\.(\d+)\.")


class Place(NamedTuple):
    """Where a tensor is. name: its name; depth: of its layer from 0 (the first) to 1 (the last); a tensor before the
    layers has 0, one behind them 1.
    """

    name: str
    depth: float


def place_of(names: Sequence[str], behind: float = 1.0) -> dict[str, Place]:
    """Return the place of each tensor of a model. Tensors without a layer are before the layers if they are embeddings,
    and behind them otherwise. behind: the depth of those.
    """
    numbers = {name: int(match[1]) for name in names if (match := LAYER.search(name))}
    last = max(numbers.values(), default=0)
    return {
        name: Place(
            name, (numbers[name] / last if last else 1.0) if name in numbers else behind * (not is_embedding(name))
        )
        for name in names
    }


def is_embedding(name: str) -> bool:
    """Return whether a tensor is called like an embedding: embed_tokens, wte, ..."""
    return ("emb" in name and "embed_out" not in name) or name.split(".")[-2:][0] in ("wte", "wpe")


def is_head(name: str) -> bool:
    """Return whether a tensor is called like the head of a language model."""
    return name.split(".")[-2:][0] in ("lm_head", "embed_out", "output", "head")


def fits(pattern: str, name: str) -> bool:
    """Return whether a filter fits a tensor's name.

    >>> [fits(one, "model.layers.3.mlp.up_proj.weight") for one in ("mlp", "*.mlp.*", "up", "*.bias", "*")]
    [True, True, True, False, True]
    """
    if any(c in pattern for c in "*?["):
        return fnmatchcase(name, pattern)
    return pattern in name


def value_of(given: PerModel, model: str, place: Place, default: float) -> float:
    """Return the value of a setting for a model at a place; `default` where nothing is said of it."""
    if isinstance(given, Mapping):
        return value_of(given[model], model, place, default) if model in given else default
    if not isinstance(given, list):
        return given
    filters = [one for one in given if isinstance(one, Filtered)]
    if not filters:
        return gradient([one for one in given if not isinstance(one, Filtered)], place.depth)
    for one in filters:
        if fits(one.filter, place.name):
            return value_of(one.value, model, place, default)
    return default


def gradient(values: Sequence[float], depth: float) -> float:
    """Return the value at a depth between 0 and 1, in lines between evenly spaced values.

    >>> [gradient([0, 1, 0.5], depth) for depth in (0, 0.25, 0.5, 1)]
    [0, 0.5, 1.0, 0.5]
    """
    if len(values) == 1 or depth <= 0:
        return values[0]
    at = min(depth, 1.0) * (len(values) - 1)
    left = min(int(at), len(values) - 2)
    assert isfinite(at)
    return values[left] + (at - left) * (values[left + 1] - values[left])


def patterns_of(given: PerModel) -> list[str]:
    """Return the filters in a setting, so that one that fits no tensor can be reported."""
    if isinstance(given, Mapping):
        return [pattern for one in given.values() for pattern in patterns_of(one)]
    return [one.filter for one in given if isinstance(one, Filtered)] if isinstance(given, list) else []
