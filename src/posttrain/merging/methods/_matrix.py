"""What methods of whole matrices have in common: which tensors they take, and singular values.

Singular values and vectors come from the eigenvectors of the smaller product of a matrix with itself, in float64. That
is several times as fast as a singular value decomposition in float32, and as exact; directions below a millionth of the
largest singular value have none that is sure, and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from posttrain.merging.methods._base import DeltaConfig, scale_of
from posttrain.merging.stack import Apply, Block, Stack, moved
from posttrain.merging.values import fits

__all__ = ["MatrixConfig", "Svd", "by_matrix", "nearest_orthonormal", "svd"]

SURE = 1e-6
"""Singular values below this share of the largest one are 0."""


class MatrixConfig(DeltaConfig):
    """A method that takes whole matrices, and averages all other tensors."""

    whole: ClassVar[bool] = True
    averaged: tuple[str, ...] = ("embed", "wte", "wpe", "lm_head", "output_layer")
    """Matrices that are no maps of features: parts of their names, or patterns with * and ?. Of these, and of all
    tensors that are no matrices, the mean of the weighted differences is added."""


def by_matrix(config: MatrixConfig, stack: Stack, merge: Callable[[Sequence[Tensor]], Tensor]) -> Apply:
    """Return the function that hands out the rows of base + scale * merge(changes), where changes are the weighted
    differences (rows, columns) of the models that have any; of base + scale * mean(changes) for other tensors.
    """
    scale = scale_of(config, stack)
    weights = stack.values(config.weight)
    if len(stack.shape) != 2 or any(fits(pattern, stack.place.name) for pattern in config.averaged):
        count = sum(weight != 0 for weight in weights) or 1
        shares = [scale * weight / count for weight in weights]

        def mean(block: Block) -> Tensor:
            assert block.base is not None
            return moved(block.base, block.models, shares)

        return mean
    whole = stack.whole()
    merged = whole.base
    assert merged is not None
    changes = [one.mul_(weight) for one, weight in zip(whole.differences(), weights, strict=True) if weight]
    changes = [one for one in changes if one.any()]
    if changes and scale:
        merged.add_(merge(changes), alpha=scale)
    return lambda block: merged[block.first : block.first + block.models.shape[1]]


class Svd(NamedTuple):
    """left (rows, r), values (r), from the largest one, right (r, columns); float64."""

    left: Tensor
    values: Tensor
    right: Tensor


def svd(matrix: Tensor, rank: int | None = None) -> Svd:
    """Return the singular values and vectors of a matrix, at most `rank` of them."""
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = svd(matrix.T, rank)
        return Svd(right.T, values, left.T)
    matrix = matrix.double()
    squares, left = torch.linalg.eigh(matrix @ matrix.T)
    values = squares.clamp_(min=0).sqrt_().flip(0)[:rank]
    values = values[values > SURE * values[0]]
    left = left.flip(1)[:, : len(values)]
    return Svd(left, values, (left.T @ matrix).div_(values[:, None]))


def nearest_orthonormal(columns: Tensor) -> Tensor:
    """Return the matrix with orthonormal columns that is nearest to this one (its polar factor). Where the columns
    depend on each other, directions that they do not have are left out.
    """
    left, _, right = svd(columns)
    return left @ right
