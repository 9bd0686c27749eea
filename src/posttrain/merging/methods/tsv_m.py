"""The leading singular directions of all task vectors, turned until those of different tasks are perpendicular.

TSV-M: each of T task vectors keeps the part 1 / T of its singular values, the largest. Directions of all of them are
put side by side and replaced by the nearest orthonormal ones, so that tasks do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.merging.methods._matrix import MatrixConfig, by_matrix, nearest_orthonormal, svd
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["TsvMConfig", "tsv_m"]


class TsvMConfig(MatrixConfig):
    """Singular directions of all task vectors, made perpendicular."""

    kind: Literal["tsv_m"] = "tsv_m"
    """Task singular vectors, made perpendicular."""
    share: float | None = Field(default=None, gt=0, le=1)
    """The part of its singular directions that each model keeps; 1 / (number of models) when left out."""


@register("merger", "tsv_m", config=TsvMConfig, paper="arXiv:2412.00081")
def tsv_m(config: TsvMConfig, stack: Stack) -> Apply:
    """Return the function that gives rows of base + scale * U S V^T, where U and V are the nearest orthonormal matrices
    to the leading singular vectors of all w_i (model_i - base), side by side, and S has their singular values.
    """

    def merge(changes: Sequence[Tensor]) -> Tensor:
        full = min(changes[0].shape)
        rank = full // len(changes) if config.share is None else int(full * config.share)
        parts = [svd(change, max(rank, 1)) for change in changes]
        left = nearest_orthonormal(torch.cat([part.left for part in parts], 1))
        right = nearest_orthonormal(torch.cat([part.right for part in parts]).T)
        return ((left * torch.cat([part.values for part in parts])) @ right.T).float()

    return by_matrix(config, stack, merge)
