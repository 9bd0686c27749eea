"""What methods have in common that mask differences from the base: shares, election of signs, and what is added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.merging import masks
from posttrain.merging.magnitude import Top, cuts
from posttrain.merging.methods._base import DeltaConfig, scale_of
from posttrain.merging.stack import Apply, Block, Stack
from posttrain.merging.values import Filtered, PerModel

__all__ = [
    "ElectConfig",
    "Share",
    "SumConfig",
    "Thin",
    "agreed",
    "dropped",
    "elected",
    "pruned",
    "ranks_of",
    "summed",
    "windowed",
]

SIGN = -(1 << 31)
ZERO = 1e-8
"""Weights whose sum is smaller are not normalised."""
SMALL = 1e-7
"""A tensor whose magnitudes sum to less is not rescaled by mergekit."""

Thin = Callable[[int, Tensor], None]
"""Masks the differences of a block (models, rows, columns) in place, given its first row."""


def _shares(given: PerModel) -> PerModel:
    """Raise ValueError unless all numbers in a setting are between 0 and 1."""
    for one in given.values() if isinstance(given, Mapping) else [given]:
        for part in one if isinstance(one, list) else [one]:
            inner = part.value if isinstance(part, Filtered) else part
            for number in inner if isinstance(inner, list) else [inner]:
                if not 0 <= number <= 1:
                    raise ValueError(f"{number:g} is no share; give a number from 0 to 1")
    return given


Share = Annotated[PerModel, AfterValidator(_shares)]
"""A number from 0 to 1."""


class SumConfig(DeltaConfig):
    """Masked differences, added."""

    normalize: bool = False
    """Divide by the sum of the weights."""


class ElectConfig(DeltaConfig):
    """Masked differences whose signs are elected."""

    usual: ClassVar[bool] = True
    """Whether mergekit divides unless it is told otherwise."""
    normalize: bool | None = None
    """Take the mean of the differences that agree in sign, not their sum. Left out: the mean (with compat: mergekit, as
    mergekit does for this method)."""


def elected(
    changes: Tensor,
    divisors: Sequence[float] | None,
    *,
    weights: Sequence[float] | None = None,
    least: float = 0.0,
) -> Tensor:
    """Return the sum of those differences that have the sign of the sum of all, or their mean (TIES). A sum of zero
    counts as positive, and a difference of zero agrees with nothing.

    changes: (models, ...), overwritten; divisors: what each model that agrees adds to the divisor, None to divide
    nothing; weights: what those that agree are multiplied by; least: the smallest divisor. Returns a part of `changes`.
    """
    signs = torch.add(changes[0], changes[1]) if len(changes) > 1 else changes[0].clone()
    for own in changes[2:]:
        signs.add_(own)
    minus = signs.view(torch.int32).bitwise_and_(SIGN)
    total, divisor, agrees = changes[0], torch.empty_like(signs), torch.empty_like(signs)
    for number, own in enumerate(changes):
        own.view(torch.int32).bitwise_xor_(minus)
        own.clamp_(min=0)
        if divisors is not None:
            torch.sign(own, out=agrees)
            if number:
                divisor.add_(agrees, alpha=divisors[number])
            else:
                torch.mul(agrees, divisors[0], out=divisor)
        if weights is not None:
            own.mul_(weights[number])
        if number:
            total.add_(own)
    if divisors is not None:
        total.div_(divisor.clamp_(min=least) if least else divisor.add_(torch.eq(divisor, 0, out=agrees)))
    total.view(torch.int32).bitwise_xor_(minus)
    return total


def summed(config: SumConfig, stack: Stack, thin: Thin, factors: Sequence[float] | None = None) -> Apply:
    """Return the function that adds masked differences to the base. factors: what each model's are multiplied by."""
    weights, scale = stack.values(config.weight), scale_of(config, stack)
    total = sum(weights)
    if config.normalize and abs(total) >= ZERO:
        scale /= total
    times = [scale * one for one in _product(weights, factors)]

    def apply(block: Block) -> Tensor:
        assert block.base is not None
        changes = block.differences()
        thin(block.first, changes)
        for own, time in zip(changes, times, strict=True):
            block.base.add_(own, alpha=time)
        return block.base

    return apply


def agreed(
    config: ElectConfig, stack: Stack, thin: Thin, factors: Sequence[float] | None = None, *, compat: str
) -> Apply:
    """Return the function that adds those masked differences to the base that agree in sign. factors: what each model's
    are multiplied by; compat: paper (signs are elected by the weighted differences, and the sum is divided by the
    number of models that agree), mergekit (by the sum of their weights) or peft (elected by the differences without
    their weights, and divided by the number).
    """
    weights, scale = stack.values(config.weight), scale_of(config, stack)
    before = _product([1.0] * len(weights) if compat == "peft" else weights, factors)
    after = weights if compat == "peft" else None
    mean = (config.usual if compat == "mergekit" else True) if config.normalize is None else config.normalize
    divisors = (weights if compat == "mergekit" else [1.0] * len(weights)) if mean else None

    def apply(block: Block) -> Tensor:
        assert block.base is not None
        changes = block.differences()
        thin(block.first, changes)
        for own, time in zip(changes, before, strict=True):
            if time != 1:
                own.mul_(time)
        return block.base.add_(elected(changes, divisors, weights=after), alpha=scale)

    return apply


def _product(weights: Sequence[float], factors: Sequence[float] | None) -> list[float]:
    return [one * other for one, other in zip(weights, factors or [1.0] * len(weights), strict=True)]


def ranks_of(densities: Sequence[float], size: int) -> list[int]:
    """Return how many numbers the densities of models keep, at least one where a density is not 0.

    >>> ranks_of([0, 0.01, 0.5, 1], 9)
    [0, 1, 4, 9]
    """
    return [min(size, max(1, int(density * size))) if density > 0 else 0 for density in densities]


def windowed(stack: Stack, densities: Sequence[float], outliers: Sequence[float]) -> Thin:
    """Return the function that keeps a share of each model's differences, the largest ones but for a share of outliers
    (Breadcrumbs). Where a density and outliers are more than all, fewer outliers are dropped. Of equal magnitudes the
    first ones in the tensor count as larger.
    """
    size = stack.rows * stack.columns
    windows = []
    for density, share in zip(densities, outliers, strict=True):
        kept = int(density * size)
        above = min(int(share * size), size - kept)
        windows.append((above + kept, above))
    found = cuts(lambda: (block.differences() for block in stack.blocks()), windows, size)
    tops = [(Top(low, exact=True), Top(high, exact=True)) for low, high in found]

    def thin(first: int, changes: Tensor) -> None:
        for own, (all_of, outer), (_, above) in zip(changes, tops, windows, strict=True):
            extreme = outer.keep_(own.clone()) if above else None
            all_of.keep_(own)
            if extreme is not None:
                own.sub_(extreme)

    return thin


def dropped(stack: Stack, densities: Sequence[float], *, rescale: str) -> tuple[Thin, list[float]]:
    """Return the function that drops differences at random (DARE), and what the others are rescaled by. rescale: none,
    share (1 / density) or norm (so that the sum of a tensor's magnitudes stays).
    """

    def thin(first: int, changes: Tensor) -> None:
        for number, density in enumerate(densities):
            if density < 1:
                own = changes[number]
                masks.drop_(own, masks.numbers(stack, number, first, own.numel()), density)

    if rescale == "norm":
        return thin, norms_kept(stack, thin, [density < 1 for density in densities])
    return thin, [1 / density if density > 0 and rescale == "share" else 1.0 for density in densities]


def norms_kept(stack: Stack, thin: Thin, masked: Sequence[bool]) -> list[float]:
    """Return by what each model's masked differences are multiplied so that the sum of their magnitudes over the tensor
    is what it was. masked: which models have a mask.
    """
    before, after = ([0.0] * len(masked) for _ in range(2))
    if any(masked):
        for block in stack.blocks():
            changes = block.differences()
            for sums in (before, after):
                for number, own in enumerate(changes):
                    sums[number] += float(own.abs().sum(dtype=torch.float64))
                if sums is before:
                    thin(block.first, changes)
    sums_of = zip(masked, before, after, strict=True)
    return [old / new if one and old >= SMALL and new >= SMALL else 1.0 for one, old, new in sums_of]


def pruned(stack: Stack, density: PerModel, epsilon: PerModel, *, rescale: str) -> tuple[Thin, list[float]]:
    """Return the function that drops differences at random, small ones more often (MagPrune of DELLA), and what the
    others are rescaled by. In each row the probability of staying grows evenly with the rank of the magnitude, from
    density - epsilon to density + epsilon. rescale: none, share (each by 1 / its probability) or norm. Raise
    ConfigError for probabilities that are none.
    """
    densities = stack.values(density)
    spreads = stack.values(epsilon)
    for share, spread in zip(densities, spreads, strict=True):
        if 0 < share < 1 and not 0 < share - spread <= share + spread < 1:
            cause = f"in {stack.place.name} density {share:g} with epsilon {spread:g} is no range between 0 and 1"
            raise ConfigError(Problem("epsilon", cause, f"give less than {min(share, 1 - share):g}"))
    columns = stack.columns
    limits, by_rank = [], []
    for share, spread in zip(densities, spreads, strict=True):
        chance = torch.linspace(share - spread, share + spread, columns, dtype=torch.float64)
        chance = chance if columns > 1 and 0 < share < 1 else torch.full((columns,), share or 1.0, dtype=torch.float64)
        limits.append(chance.mul(masks.SPAN).round_().clamp_(max=masks.SPAN - 1).to(torch.int32))
        by_rank.append((1 / chance).float() if rescale == "share" else torch.ones(columns))
    place = torch.arange(columns)

    def thin(first: int, changes: Tensor) -> None:
        for number, share in enumerate(densities):
            own = changes[number]
            if share >= 1:
                continue
            if share <= 0:
                own.zero_()
                continue
            order = _order(own, place)
            kept = masks.numbers(stack, number, first, own.numel()).view(own.shape).sub_(limits[number])
            factors = by_rank[number].view(torch.int32) & kept.bitwise_right_shift_(31)
            own.mul_(torch.empty_like(own).scatter_(1, order, factors.view(torch.float32)))

    if rescale == "norm":
        return thin, norms_kept(stack, thin, [share < 1 for share in densities])
    return thin, [1.0] * len(densities)


def _order(values: Tensor, place: Tensor) -> Tensor:
    """Return the columns of each row in the order of their magnitudes, from the smallest, equal ones as they are. One
    sort of whole numbers: the magnitude's bits, then the column.
    """
    keys = torch.bitwise_and(values.view(torch.int32), 0x7FFFFFFF).long().bitwise_left_shift_(32).bitwise_or_(place)
    keys.numpy().sort(axis=1)
    return keys.bitwise_and_(0xFFFFFFFF)
