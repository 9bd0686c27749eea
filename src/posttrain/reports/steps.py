"""An exam over training: which checkpoint is best, and from where on a score has really fallen. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["StepPoint", "best", "range_ticks", "starts_to_fall"]


class StepPoint(NamedTuple):
    """A checkpoint: its step and headline; different, difference: against the untouched model, None without one."""

    step: int
    value: float
    ci95: tuple[float, float] | None = None
    difference: float | None = None
    different: bool = False
    checkpoint: str = ""


def best(points: Sequence[StepPoint], *, higher_is_better: bool = True) -> StepPoint | None:
    """The checkpoint of the highest (or lowest) headline; of equal ones the earliest. None without checkpoints."""
    sign = -1.0 if higher_is_better else 1.0
    return min(points, key=lambda point: (sign * point.value, point.step), default=None)


def starts_to_fall(points: Sequence[StepPoint], *, higher_is_better: bool = True) -> StepPoint | None:
    """The first checkpoint from which on every checkpoint is worse than the untouched model by a real difference.

    A fall that a later checkpoint makes good, or that cannot be told from chance, is none. None: it does not fall.
    """
    first = None
    for point in sorted(points, key=lambda point: -point.step):
        worse = point.difference is not None and (point.difference < 0) is higher_is_better and point.difference != 0
        if not (worse and point.different):
            break
        first = point
    return first


def range_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that hold low..high between the first and the last of them, about `count` steps apart."""
    if not high > low:
        pad = abs(low or 1.0) * 0.05
        low, high = max(low - pad, 0.0) if low >= 0 else low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return [round(tick, 12) for tick in ticks]
