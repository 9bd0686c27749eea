"""Random masks that depend on what they are for, and on nothing else: not on threads, nor on an order.

The numbers of a block come from a generator whose key is a hash of the seed, the model's name, the tensor's name and
the block's first row. NumPy guarantees the stream of a bit generator (NEP 19), so a mask can be made again years later.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.merging.stack import Stack

__all__ = ["SPAN", "drop_", "numbers"]

SPAN = 1 << 31
"""Random numbers are from 0 to this, exclusive."""


def numbers(stack: Stack, model: int, first: int, size: int) -> Tensor:
    """Return random whole numbers from 0 to `SPAN` (size,), int32, for the block of a model that begins at a row."""
    name = f"{stack.seed}\0{stack.models[model]}\0{stack.place.name}\0{first}"
    key = int.from_bytes(blake2b(name.encode("utf-8"), digest_size=16).digest(), "little")
    raw: Any = np.random.PCG64DXSM(key).random_raw(size + 1 >> 1)
    return torch.from_numpy(raw).view(torch.int32)[:size].bitwise_and_(SPAN - 1)


def drop_(values: Tensor, drawn: Tensor, density: float) -> Tensor:
    """Set each value to zero but with a probability, the density, in place. values: float32 without gaps; drawn: random
    numbers of the same size, which are overwritten.
    """
    limit = round(density * SPAN)
    if limit < SPAN:
        drawn.sub_(limit).bitwise_right_shift_(31)
        values.view(-1).view(torch.int32).bitwise_and_(drawn)
    return values
