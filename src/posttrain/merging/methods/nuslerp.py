"""Two models joined by an arc with weights, on the models or on their differences from a base.

Source: mergekit's nuslerp. The arc is of whole tensors, or of each of their rows or columns by itself.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.methods._sphere import arc, summed
from posttrain.merging.stack import Apply, Block, Stack
from posttrain.merging.values import PerModel
from posttrain.registry import register

__all__ = ["NuslerpConfig", "nuslerp"]

SHORT = 1e-7
"""Lengths below this count as this."""
PARALLEL = 1e-16
"""An angle with a squared sine of at most this much is none."""
BALANCED = 1e-6
"""Weights with a sum below this count as equal."""


class NuslerpConfig(MergerConfig):
    """A point of the arc between two models, or between what two models changed of a base."""

    may_have_base: ClassVar[bool] = True
    models_at_least: ClassVar[int] = 2
    models_at_most: ClassVar[int | None] = 2
    kind: Literal["nuslerp"] = "nuslerp"
    """The arc between two models, by weights."""
    weight: PerModel = 1.0
    """Of each model. The share of the second one in their sum is the point of the arc."""
    per: Literal["tensor", "row", "column"] = "tensor"
    """What has an angle of its own: each tensor, each of its rows (its last dimension; mergekit's `nuslerp_flatten:
    false`) or each of its columns (its first dimension; mergekit's `nuslerp_row_wise: true` with it)."""


@register("merger", "nuslerp", config=NuslerpConfig)
def nuslerp(config: NuslerpConfig, stack: Stack) -> Apply:
    """Return the function that makes a block: sin((1-t) a)/sin(a) first + sin(t a)/sin(a) second, for the angle a of
    the tensors, rows or columns; of their differences from the base, on top of it, if there is one.
    """
    first, second = stack.values(config.weight)
    total = first + second
    t = second / total if abs(total) >= BALANCED else 0.5
    if config.per == "tensor" or len(stack.shape) < 2:
        of_first, of_second = _weights(stack.products(less_base=stack.has_base), t)
        return summed([float(of_first), float(of_second)])
    if config.per == "row":
        return lambda block: _joined(block, t, stack.shape[-1], None)
    sums = torch.zeros(3, stack.columns, dtype=torch.float64)
    for block in stack.blocks():
        own, change = _parts(block)
        for one, left, right in zip(sums, (own, own, change), (own, change, change), strict=True):
            one.add_((left * right).sum(0, dtype=torch.float64))
    return lambda block: _joined(block, t, stack.columns, sums)


def _parts(block: Block) -> tuple[Tensor, Tensor]:
    """Return the first model (less the base) and what the second one differs from it, in the place of the second."""
    first, second = block.models
    return first if block.base is None else first - block.base, second.sub_(first)


def _joined(block: Block, t: float, columns: int, sums: Tensor | None) -> Tensor:
    """Return a block whose rows of so many numbers are each joined by an arc. sums: of the squares of the first model,
    of its products with the difference, and of the squares of the difference, by column; None: of each row.
    """
    own, change = (part.view(-1, columns) for part in _parts(block))
    if sums is None:
        pairs = ((own, own), (own, change), (change, change))
        sums = torch.stack([(left * right).sum(1, keepdim=True) for left, right in pairs]).double()
    squares, mixed, changed = sums
    products = torch.stack([squares, squares + mixed, squares + mixed, squares + 2 * mixed + changed])
    of_first, of_second = _weights(products.view(2, 2, *squares.shape), t)
    first = block.models[0].view(-1, columns)
    merged = torch.addcmul(first, own, (of_first + of_second - 1).float())
    return merged.addcmul_(change, of_second.float()).view(block.models[0].shape)


def _weights(products: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Return the weights of two vectors (or of many pairs), given their inner products (2, 2, ...) in float64."""
    lengths = [products[i, i].clamp(min=0).sqrt().clamp(min=SHORT) for i in (0, 1)]
    cosine = (products[0, 1] / (lengths[0] * lengths[1])).clamp(-1, 1)
    return arc(cosine, t, 1 - cosine.square() <= PARALLEL)
