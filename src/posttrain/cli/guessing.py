"""How long something may take, said as what it is: a guess by arithmetic, within a factor of three."""

from __future__ import annotations

from posttrain.models.meter import clock

__all__ = ["time_line"]


def time_line(seconds: float) -> str:
    """The line of a dry run about time."""
    low, high = clock(seconds / 3), clock(max(3 * seconds, 1))
    return f"time        about {low} to {high} on this machine: a guess by arithmetic; loading is not counted"
