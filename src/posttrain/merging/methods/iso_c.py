"""The sum of task vectors with a flat spectrum: all singular values are their mean (Iso-C).

A sum of task vectors has few large singular values, of directions that tasks share; others, of single tasks, are small.
Made equal, all directions count alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from posttrain.merging.methods._matrix import MatrixConfig, by_matrix, svd
from posttrain.merging.stack import Apply, Stack
from posttrain.registry import register

__all__ = ["IsoCConfig", "iso_c"]


class IsoCConfig(MatrixConfig):
    """Summed task vectors, made isotropic."""

    kind: Literal["iso_c"] = "iso_c"
    """Task vectors with a flat spectrum."""


@register("merger", "iso_c", config=IsoCConfig, paper="arXiv:2502.04959")
def iso_c(config: IsoCConfig, stack: Stack) -> Apply:
    """Return the function that gives rows of base + scale * mean(S) U V^T, where U S V^T is the sum of all
    w_i (model_i - base).
    """
    return by_matrix(config, stack, flat)


def flat(changes: Sequence[Tensor]) -> Tensor:
    """Return the sum of changes (rows, columns) with all singular values at their mean; those that are 0 stay 0."""
    left, values, right = svd(sum(changes[1:], changes[0]))
    return ((left * (values.sum() / min(changes[0].shape))) @ right).float()
