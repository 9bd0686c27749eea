"""Means on a sphere: all of them are sums of the models with weights that follow from the models' inner products.

Weights are found in float64 from a few numbers, and applied in one pass. Tensors are written as one model and what the
others differ from it, so models that are all the same give that model, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.merging.stack import Apply, Block, moved

__all__ = ["arc", "summed"]

ROUNDED = 1e-9
"""A sum of weights this near to 1 or 0 is 1 or 0: what float64 has left of it."""
LARGE = 16.0
"""Weights above this would lose digits in differences."""


def arc(cosine: Tensor, t: float, straight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of two vectors at the point t of the arc between them: sin((1-t) a) / sin a and sin(t a) / sin
    a for the angle a; 1 - t and t where they are to be joined by a straight line. All float64, of any one shape.
    """
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    sine = torch.sin(angle)
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / sine)
    return first, torch.where(straight, t, torch.sin(t * angle) / sine)


def summed(weights: Sequence[float]) -> Apply:
    """Return the function that makes sum_i w_i model_i of a block; with a base, base + sum_i w_i (model_i - base)."""
    total = sum(weights)
    total = next((whole for whole in (0.0, 1.0) if abs(total - whole) < ROUNDED), total)
    large = max(map(abs, weights)) > LARGE

    def apply(block: Block) -> Tensor:
        first, *others = block.models
        if block.base is None:
            if large:
                return torch.einsum("k,krc->rc", torch.tensor(weights, dtype=torch.float32), block.models)
            return moved(first, others, weights[1:], total)
        if large or abs(total) < 0.5:
            return moved(block.base, block.models, weights)
        if total == 1:
            return moved(first, others, weights[1:])
        return moved(first, [*others, block.base], [*weights[1:], 1 - total])

    return apply
