"""What a method of merging sees: one tensor of all models, block by block, in float32.

A block is a few whole rows, about 64,000 numbers, so that all of its passes stay in the processor's cache. Blocks are
the same whatever the number of threads and however much is read at a time, so results are, too. A method gets a `Stack`
and returns the function that makes one merged block of one block of the models:

    @register("merger", "linear", config=LinearConfig)
    def linear(config, stack):
        weights = stack.values(config.weight)
        return lambda block: moved(block.models[0], block.models[1:], weights[1:])

Before it returns, it may read all blocks for what it needs to know of the whole tensor (`blocks`, `products`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.merging.values import PerModel, Place, value_of

__all__ = ["BLOCK", "Apply", "Block", "Stack", "block_rows", "inner", "moved"]

BLOCK = 1 << 16
"""Numbers of a block, about."""
PIECE = 1 << 10
"""Numbers that are added up in float32 before they are added to others in float64."""


def block_rows(rows: int, columns: int) -> int:
    """Return how many rows a block has: as many as make up `BLOCK` numbers, at least one."""
    return max(1, min(rows, BLOCK // max(columns, 1)))


class Block(NamedTuple):
    """Some rows of a tensor. first: the number of the first one; base: (rows, columns), None if there is none; models:
    (models, rows, columns). A method may overwrite all of it.
    """

    first: int
    base: Tensor | None
    models: Tensor

    def differences(self) -> Tensor:
        """Return models less base, in the place of the models."""
        assert self.base is not None
        return self.models.sub_(self.base)


Apply = Callable[[Block], Tensor]
"""Makes of a block of the models the merged one (rows, columns)."""


@dataclass
class Stack:
    """One tensor of all models.

    place: its name and depth; shape: its own; rows, columns: of the table as which it is read; models: their names,
    without the base's; read: makes a block of rows, given the first one and their number; has_base; seed: of random
    masks; survey: what the method's survey of all tensors has found.
    """

    place: Place
    shape: tuple[int, ...]
    rows: int
    columns: int
    models: tuple[str, ...]
    read: Callable[[int, int], Block]
    has_base: bool = True
    seed: int = 0
    survey: Any = None
    known: dict[str, Tensor] = field(default_factory=dict)

    def values(self, given: PerModel, default: float = 1.0) -> list[float]:
        """Return the value of a setting for each model at this place."""
        return [value_of(given, model, self.place, default) for model in self.models]

    def value(self, given: PerModel, default: float = 1.0) -> float:
        """Return the value of a setting that is the same for all models."""
        return value_of(given, "", self.place, default)

    def blocks(self) -> Iterator[Block]:
        """Read the tensor from its first to its last row. A block holds until the next one is read."""
        step = block_rows(self.rows, self.columns)
        for first in range(0, self.rows, step):
            yield self.read(first, min(step, self.rows - first))

    def whole(self) -> Block:
        """Return the whole tensor as one block of its own."""
        block = self.read(0, self.rows)
        return Block(0, None if block.base is None else block.base.clone(), block.models.clone())

    def products(self, *, less_base: bool = False) -> Tensor:
        """Return the inner products of all pairs of models, (models, models) in float64; of their differences from the
        base with `less_base`; else the base, if there is one, comes first.

        Models are compared by what they differ: the products are made of the first one and the others' differences from
        it, so the angle between two that are nearly the same is exact.
        """
        name = f"products {less_base}"
        if name not in self.known:
            count = len(self.models) + (self.has_base and not less_base)
            total = torch.zeros(count, count, dtype=torch.float64)
            for block in self.blocks():
                if less_base:
                    rows = block.differences()
                else:
                    rows = block.models if block.base is None else torch.cat([block.base[None], block.models])
                    rows[1:].sub_(rows[0])
                total += inner(rows.flatten(1))
            if not less_base:
                made_of = torch.eye(count, dtype=torch.float64)
                made_of[:, 0] = 1
                total = made_of @ total @ made_of.T
            self.known[name] = total
        return self.known[name]


def inner(rows: Tensor) -> Tensor:
    """Return the inner products of all pairs of rows (k, n): (k, k) in float64. Pieces of `PIECE` numbers are added up
    in float32, and these in float64.
    """
    size = rows.shape[1]
    whole = size - size % PIECE
    rest = rows[:, whole:]
    total = (rest @ rest.T).double()
    if whole:
        pieces = rows[:, :whole].view(len(rows), -1, PIECE).transpose(0, 1)
        total += torch.bmm(pieces, pieces.transpose(1, 2)).double().sum(0)
    return total


def moved(anchor: Tensor, models: Sequence[Tensor] | Tensor, weights: Sequence[float], times: float = 1.0) -> Tensor:
    """Return times anchor + sum_i w_i (model_i - anchor), (rows, columns), in the place of the anchor; models are
    overwritten.

    So computed, models that are all the same give that model, to the last bit. Where weights are opposite, as in
    c + (a - b), the sum is made in float64: it is c, to the last bit, wherever a and b are the same.
    """
    every = (times - sum(weights), *weights)
    if any(isclose(one, -other) for one in every for other in every if other):
        total = anchor.double().mul_(every[0])
        for model, weight in zip(models, weights, strict=True):
            total.add_(model.double(), alpha=weight)
        return anchor.copy_(total)
    for model in models:
        model.sub_(anchor)
    if times != 1:
        anchor.mul_(times)
    for model, weight in zip(models, weights, strict=True):
        anchor.add_(model, alpha=weight)
    return anchor
