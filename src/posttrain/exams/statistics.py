"""Intervals: Wilson for a share within one change, the percentile bootstrap over changes for many.

Wilson (E. B. Wilson 1927, JASA 22:209) holds near 0 and 1, where exams live and where the textbook interval is wrong.
Probes of one change are not independent of each other (one edit moves them together), so with many changes the changes
are what is resampled, not the probes (Efron & Tibshirani 1993, ch. 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Interval", "bootstrap_over_changes", "wilson"]

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""
CHUNK = 1 << 22
"""Numbers drawn at once, to bound memory."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def wilson(k: int, n: int) -> Interval:
    """95 % interval of a share of `k` successes in `n` trials; (0, 1) when nothing was tried.

        (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n),   p = k/n
    """  # fmt: skip
    if not 0 <= k <= n:
        raise ValueError(f"{k} successes in {n} trials")
    if n == 0:
        return Interval(0.0, 1.0)
    p = k / n
    centre = p + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    low = 0.0 if k == 0 else (centre - half) / scale
    high = 1.0 if k == n else (centre + half) / scale
    return Interval(low, high)


def bootstrap_over_changes(values: Sequence[float], *, seed: int = 0, resamples: int = 10_000) -> Interval | None:
    """95 % percentile interval of the mean of one score over changes (one value per change).

    None for fewer than two changes: resampling one value says nothing. Where all changes agree the interval is that
    point; it then means "no change differed", not certainty.
    """
    n = len(values)
    if n < 2:
        return None
    data = np.asarray(values, dtype=np.float64)  # (N,)
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // n)
    means = np.concatenate(
        [
            data[generator.integers(0, n, size=(min(step, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, step)
        ]
    )  # (resamples,)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(low), float(high))
