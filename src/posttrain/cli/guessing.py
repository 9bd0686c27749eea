"""How long something may take, said as what it is: a guess by arithmetic, within a factor of three."""

from __future__ import annotations

__all__ = ["clock", "time_line"]


def time_line(seconds: float) -> str:
    """The line of a dry run about time."""
    low, high = clock(seconds / 3), clock(max(3 * seconds, 1))
    return f"time        about {low} to {high} on this machine: a guess by arithmetic; loading is not counted"


def clock(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
