"""Random models of one tensor, and what a method makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.merging.engine import in_memory
from posttrain.merging.stack import Block, Stack, block_rows
from posttrain.merging.values import Place

SHAPES = [(37, 24), (64,), (1, 130), (300, 7)]
"""With `BLOCK` at 100 numbers, two of them have many blocks."""
CASES = list(product(SHAPES, (2, 3)))
WEIGHTS = [0.7, 1.3, -0.4]
DENSITIES = [0.5, 0.3, 0.8]


def made(shape: Sequence[int], models: int, size: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """Return a base and models whose differences from it have about a size."""
    draw = torch.Generator().manual_seed(len(shape) * 1000 + shape[0] + models)
    base = torch.randn(tuple(shape), generator=draw)
    return base, [base + size * torch.randn(tuple(shape), generator=draw) for _ in range(models)]


def per_model(values: Sequence[float], models: int) -> dict[str, float]:
    """Return values by model, as they are written in a configuration."""
    return {str(number): values[number] for number in range(models)}


def merged(config: Any, base: Tensor, models: Sequence[Tensor], seed: int = 0) -> Tensor:
    """Return what a method makes of one tensor, `w`. The models are named 0, 1, ..."""
    named = {str(number): {"w": model} for number, model in enumerate(models)}
    return in_memory({"base": {"w": base}, **named}, "base", config, seed=seed)["w"]


def far(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest deviation, relative to the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def stacked(base: Tensor, models: Sequence[Tensor], seed: int = 0) -> Stack:
    """Return what a method sees of one tensor, `w`."""
    rows, columns = (len(base), base[0].numel()) if base.ndim > 1 else (1, base.numel())
    tables = [one.view(rows, columns) for one in (base, *models)]

    def read(first: int, number: int) -> Block:
        own, *others = [table[first : first + number].clone() for table in tables]
        return Block(first, own, torch.stack(others))

    names = tuple(str(number) for number in range(len(models)))
    return Stack(Place("w", 0.5), tuple(base.shape), rows, columns, names, read, seed=seed)


def masks_of(thin: Any, stack: Stack) -> Tensor:
    """Return which differences of a tensor a method keeps, (models, rows, columns)."""
    step = block_rows(stack.rows, stack.columns)
    kept = []
    for first in range(0, stack.rows, step):
        changes = stack.read(first, min(step, stack.rows - first)).differences()
        thin(first, changes)
        kept.append(changes != 0)
    return torch.cat(kept, 1)


def peft() -> Any:
    """Return PEFT's functions that merge, without importing all of PEFT."""
    found = find_spec("peft")
    assert found is not None
    assert found.origin is not None
    spec = spec_from_file_location("peft_merging", Path(found.origin).parent / "utils" / "merge_utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
