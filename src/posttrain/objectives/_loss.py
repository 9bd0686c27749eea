"""The result of an objective: sums per row, so that the parts of an optimiser step add up before they are divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["Loss"]


class Loss(NamedTuple):
    """Sums, not means, so that the parts of an optimiser step can be added before they are divided.

    nats: the loss of each row, shape (B,), with a gradient; units: what a step's sum is divided by, shape (B,),
    integers: supervised tokens of a row, or 1 for a pair, a document, a graded answer;
    metrics: further sums per row, shape (B,) each and without gradient; divided like the loss when they are logged.
    """

    nats: Tensor
    units: Tensor
    metrics: Mapping[str, Tensor] = {}
