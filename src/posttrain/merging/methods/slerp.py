"""Two models joined by an arc, tensor by tensor: the angle changes evenly, and lengths do not shrink.

The first model is at t = 0, the second at t = 1. Source: Shoemake, "Animating rotation with quaternion curves",
SIGGRAPH 1985; for models, the convention of mergekit: a straight line for models that are nearly parallel.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.methods._sphere import arc, summed
from posttrain.merging.stack import Apply, Stack
from posttrain.merging.values import Graded
from posttrain.registry import register

__all__ = ["SlerpConfig", "slerp"]

SHORT = 1e-8
"""A tensor of at most this length counts as perpendicular to all others."""
PARALLEL = 1e-16
"""An angle with a squared sine of at most this much is none."""


class SlerpConfig(MergerConfig):
    """A point of the arc between two models."""

    models_at_least: ClassVar[int] = 2
    models_at_most: ClassVar[int | None] = 2
    kind: Literal["slerp"] = "slerp"
    """The arc between two models."""
    t: Graded = 0.5
    """Where on the arc: 0 is the first model, 1 the second; below 0 or above 1 it goes on beyond them."""
    lerp_above: float = Field(default=0.9995, ge=0, le=1)
    """Tensors whose cosine is above this (or below its negative) are joined by a straight line. 1: always by an arc."""


@register("merger", "slerp", config=SlerpConfig)
def slerp(config: SlerpConfig, stack: Stack) -> Apply:
    """Return the function that makes a block: sin((1-t) a)/sin(a) first + sin(t a)/sin(a) second, for the angle a."""
    products = stack.products()[-2:, -2:]
    lengths = products.diagonal().sqrt()
    lengths = torch.where(lengths > SHORT, lengths, 1.0)
    cosine = (products[0, 1] / lengths.prod()).clamp(-1, 1)
    straight = (cosine.abs() > config.lerp_above) | (1 - cosine.square() <= PARALLEL)
    first, second = arc(cosine, stack.value(config.t, 0.5), straight)
    return summed([float(first), float(second)])
