"""An exam over training: which checkpoint is best, and from which one on a score has fallen. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["StepPoint", "best", "starts_to_fall"]


class StepPoint(NamedTuple):
    """A checkpoint: its step and headline; different, difference: against the untouched model, None without one."""

    step: int
    value: float
    ci95: tuple[float, float] | None = None
    difference: float | None = None
    different: bool = False
    checkpoint: str = ""


def best(points: Sequence[StepPoint], *, higher_is_better: bool = True) -> StepPoint | None:
    """Return the checkpoint of the highest (or lowest) headline, of equals the earliest; None without checkpoints."""
    sign = -1.0 if higher_is_better else 1.0
    return min(points, key=lambda point: (sign * point.value, point.step), default=None)


def starts_to_fall(points: Sequence[StepPoint], *, higher_is_better: bool = True) -> StepPoint | None:
    """Return the first checkpoint from which on all are worse than the untouched model by a real difference.

    None where there is no such checkpoint. A score that recovers, or whose fall may be chance, does not fall.
    """
    first = None
    for point in sorted(points, key=lambda point: -point.step):
        worse = point.difference is not None and (point.difference < 0) is higher_is_better and point.difference != 0
        if not (worse and point.different):
            break
        first = point
    return first
