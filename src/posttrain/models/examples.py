"""Define the rows on which parts of a model and measurements look before training."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Example"]


class Example(NamedTuple):
    """One row: inputs (T,); positions (K,) at which logits are used; targets (K,), the labels at these positions."""

    inputs: Tensor
    positions: Tensor
    targets: Tensor
