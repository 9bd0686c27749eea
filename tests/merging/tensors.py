"""Random tensors for tests of methods, merged by our engine, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.merging.engine import in_memory

SHAPES = ((7, 5), (11,), (64, 48), (3, 4, 5))
"""Of tensors that are merged; with blocks of 256 numbers, the third one has 13 of them."""


def drawn(shape: Sequence[int], count: int, *, base: bool = True, seed: int = 0, far: float = 0.3) -> list[Tensor]:
    """Return a base and some models that differ from it by `far`, relatively. base: else the models alone."""
    source = torch.Generator().manual_seed(seed)
    first = torch.randn(*shape, generator=source)
    models = [first + far * torch.randn(*shape, generator=source) for _ in range(count)]
    return [first, *models] if base else models


def merged(config: Any, models: Sequence[Tensor], base: Tensor | None = None, name: str = "w") -> Tensor:
    """Return one tensor of models, merged. The models' names are 0, 1, ..."""
    given = {str(number): {name: model} for number, model in enumerate(models)}
    if base is not None:
        given = {"base": {name: base}, **given}
    return in_memory(given, None if base is None else "base", config)[name]


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest number."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())
