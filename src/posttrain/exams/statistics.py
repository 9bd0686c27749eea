"""Intervals and tests: Wilson for a share, the percentile bootstrap for means, paired bootstrap and McNemar for two
models on the same samples.

Wilson (E. B. Wilson 1927, JASA 22:209) holds near 0 and 1, where exams live and where the textbook interval is wrong.
Probes of one change are not independent of each other (one edit moves them together), so with many changes the changes
are what is resampled, not the probes (Efron & Tibshirani 1993, ch. 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "bootstrap_over_changes", "mcnemar", "paired_bootstrap", "wilson"]

Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""
CHUNK = 1 << 22
"""Numbers drawn at once, to bound memory."""
DRAWS = 1 << 24
"""Numbers drawn in all for a paired bootstrap of many samples, to bound time."""
FEW = 64
"""So many distinct differences are drawn as a multinomial."""


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
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)  # (N,)
    return _middle(_resampled_means(data, np.random.default_rng(seed), resamples))


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, resamples: int = 10_000
) -> Interval | None:
    """95 % percentile interval of mean(after) - mean(before) over samples that both were asked (Efron & Tibshirani
    1993, ch. 13; for comparing systems: Koehn 2004): whole pairs are resampled, so what makes a question hard for both
    cancels out.

    None for fewer than two pairs. Where the differences take few values (answers right or wrong: -1, 0, 1) how often
    each is drawn is multinomial, and that is drawn at once; otherwise many pairs lower the resamples to 2,000 at least.
    """
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)  # (N,)
    n = len(differences)
    if n < 2:
        return None
    generator = np.random.default_rng(seed)
    values, counts = np.unique(differences, return_counts=True)
    if len(values) <= FEW:
        drawn = generator.multinomial(n, counts / n, size=resamples)  # (resamples, distinct values)
        return _middle(drawn @ values / n)
    return _middle(_resampled_means(differences, generator, min(resamples, max(2_000, DRAWS // n))))


def mcnemar(only_before: int, only_after: int) -> float:
    """Exact two-sided p-value that two models are right equally often (McNemar 1947, by the binomial distribution).

        p = min(1, 2 * sum over i = 0..min(b, c) of C(b + c, i) / 2^(b + c))

    b: samples that only the first was right on, c: only the second. Samples on which they agree say nothing.
    """  # fmt: skip
    total = only_before + only_after
    term = tail = 1
    for i in range(1, min(only_before, only_after) + 1):
        term = term * (total - i + 1) // i
        tail += term
    return min(1.0, 2 * tail / 2**total)


def _resampled_means(data: NDArray[np.float64], generator: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """Means of `resamples` draws of N of the data (N,) with replacement."""
    n = len(data)
    step = max(1, CHUNK // n)
    return np.concatenate(
        [
            data[generator.integers(0, n, size=(min(step, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, step)
        ]
    )


def _middle(means: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(low), float(high))
