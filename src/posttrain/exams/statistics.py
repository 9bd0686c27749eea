"""Confidence intervals and tests, and scores of transfer between tasks that are learned one after another.

Wilson's interval for a share, the percentile bootstrap for means, paired bootstrap and McNemar's test for two models on
the same samples, sign flips for two models on the same changes.

Wilson's interval (E. B. Wilson 1927, JASA 22:209) is valid near 0 and 1, where many exam scores are and where the
textbook interval is wrong. Probes of one change are not independent of each other (one edit moves them together), so
with many changes the changes are resampled, not the probes (Efron & Tibshirani 1993, ch. 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FEWEST",
    "SIGNIFICANT",
    "Interval",
    "Score",
    "bootstrap_over_changes",
    "cohen_kappa",
    "mcnemar",
    "mean_over_changes",
    "paired_bootstrap",
    "separate_scores",
    "share_over_changes",
    "sign_flips",
    "transfer_scores",
    "wilson",
]

SIGNIFICANT = 0.05
FEWEST = 6
"""With fewer differing pairs no exact test can reach 0.05: five on one side have 2 * 0.5^5 = 0.0625."""
Z95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""
CHUNK = 1 << 22
"""The most numbers that are drawn at once, to limit memory."""
DRAWS = 1 << 24
"""The most numbers that are drawn in all for a paired bootstrap of many samples, to limit time."""
FEW = 64
"""Up to this many distinct differences, how often each is drawn is drawn from a multinomial distribution."""
STUDENT_975 = {2: 12.7062, 3: 4.3027, 4: 3.1824}
"""The 97.5 % points of Student's t with n - 1 degrees of freedom, for n = 2, 3, 4 values."""
EXACT_FLIPS = 14
"""Up to this many changes every pattern of signs is counted; above, FLIPS patterns are drawn."""
FLIPS = 20_000


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Score(NamedTuple):
    """A score with its 95 % interval (None if it has none) and its number of samples."""

    value: float
    ci95: Interval | None
    n: int


def wilson(k: float, n: float) -> Interval:
    """Return the 95 % interval of a share of `k` successes in `n` trials; (0, 1) for no trials.

        (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n),   p = k/n

    k and n need not be integers: see `share_over_changes`. ValueError unless 0 <= k <= n.
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
    """Return the 95 % percentile interval of the mean of one score over changes (one value per change).

    None for fewer than two changes: resampling one value gives no information. If all changes have the same value, the
    interval is that point; this means "no change differed", not certainty.
    """
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)  # (N,)
    return _middle(_resampled_means(data, np.random.default_rng(seed), resamples))


def share_over_changes(shares: Sequence[float], counted: Sequence[int]) -> Interval:
    """Return the 95 % interval of the mean of a share over changes: Wilson's, with the effective number of probes.

        n = p (1-p) / (s²/N),   at least N, at most the number of all probes

    shares, counted: for each of N changes, its share and its number of probes; p: the mean of the shares; s²: their
    variance. The probes of one change are moved together by the same edit, so they count for less than independent
    probes. The variance between changes gives the factor (the interval for surveys of clusters: Korn & Graubard 1998,
    Survey Methodology 24:193; Dean & Pagano 2015, J. Surv. Stat. Methodol. 3:484). If all changes have the same share,
    this factor is unknown, and each change counts as one probe. With one change, n is the number of its probes.

    Unlike a bootstrap interval, it is never a single point: 1 of 1 gives 21 to 100 %, 8 of 8 give 68 to 100 %.
    """  # fmt: skip
    n = len(shares)
    if n < 2:
        total = sum(counted)
        return wilson(sum(shares) * total, total)
    p = float(np.mean(shares))
    variance = float(np.var(shares, ddof=1)) / n
    effective = p * (1 - p) / variance if variance > 0 else 0.0
    effective = min(max(effective, n), max(n, sum(counted)))
    return wilson(p * effective, effective)


def mean_over_changes(values: Sequence[float], *, seed: int = 0) -> Interval | None:
    """Return the 95 % interval of the mean of a number over changes; None for fewer than two changes.

    It is the bootstrap's interval, or Student's t for two to four values, for which a bootstrap's interval is far too
    small. Student's is cut at 0 if no value is below 0, and also at 1 if all values are between 0 and 1.
    """
    if len(values) not in STUDENT_975:
        return bootstrap_over_changes(values, seed=seed)
    middle = float(np.mean(values))
    half = STUDENT_975[len(values)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    low, high = min(values), max(values)
    bounds = (0.0 if low >= 0 else -math.inf, 1.0 if low >= 0 and high <= 1 else math.inf)
    return Interval(max(middle - half, bounds[0]), min(middle + half, bounds[1]))


def sign_flips(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of Fisher's randomisation test on differences, one per change.

    The hypothesis is that they are as likely below 0 as above. The p-value is the share of all patterns of signs for
    which the sum is at least as far from 0: exact up to 14 changes that differ from 0, estimated from drawn patterns
    above.
    """
    d = np.asarray([x for x in differences if x != 0], dtype=np.float64)
    n = len(d)
    if n == 0:
        return 1.0
    if n <= EXACT_FLIPS:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        extra = 0
    else:
        signs, extra = 1 - 2 * np.random.default_rng(seed).integers(0, 2, size=(FLIPS, n)), 1
    far = np.abs(signs @ d) >= abs(float(d.sum())) - 1e-12
    return (int(far.sum()) + extra) / (len(signs) + extra)


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, resamples: int = 10_000
) -> Interval | None:
    """Return the 95 % percentile interval of mean(after) - mean(before) over samples that both models answered.

    Whole pairs are resampled, so that the difficulty of a question, which is the same for both, cancels out (Efron &
    Tibshirani 1993, ch. 13; for comparing systems: Koehn 2004). None for fewer than two pairs. If the differences take
    few values (right or wrong: -1, 0, 1), how often each is drawn has a multinomial distribution, which is drawn
    directly; otherwise many pairs reduce the number of resamples, to 2,000 at least.
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
    """Return the exact two-sided p-value that two models are right equally often (McNemar 1947, binomial distribution).

        p = min(1, 2 * sum over i = 0..min(b, c) of C(b + c, i) / 2^(b + c))

    b: number of samples that only the first model was right on; c: only the second. Samples on which both models agree
    have no influence.
    """  # fmt: skip
    total = only_before + only_after
    term = tail = 1
    for i in range(1, min(only_before, only_after) + 1):
        term = term * (total - i + 1) // i
        tail += term
    return min(1.0, 2 * tail / 2**total)


def cohen_kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Return how far two judges agree on yes and no beyond chance (Cohen's kappa).

    (p - e) / (1 - e), with p the share judged alike and e the share expected by chance, from the judges' own shares of
    yes (Cohen 1960, Educ. Psychol. Meas. 20:37). None for no pairs, or if chance alone would make the judges always
    agree.
    """
    n = len(pairs)
    if not n:
        return None
    p = sum(a == b for a, b in pairs) / n
    one, other = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    e = one * other + (1 - one) * (1 - other)
    return (p - e) / (1 - e) if e < 1 else None


def _resampled_means(data: NDArray[np.float64], generator: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """Return the means of `resamples` draws of N of the data (N,) with replacement."""
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


def transfer_scores(before: Sequence[float], matrix: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return average score, backward and forward transfer and forgetting of T tasks learned one after another.

        ACC        = mean over j            of R[T-1][j]
        BWT        = mean over j < T-1      of R[T-1][j] - R[j][j]
        FWT        = mean over j > 0        of R[j-1][j] - b[j]
        forgetting = mean over j < T-1      of max over i < T-1 of R[i][j], less R[T-1][j]

    matrix: R[i][j] is the score of task j after task i has been learned; before: b[j], the score of the untouched
    model. One task, or one training of all tasks together (a matrix of one row), has ACC alone. ValueError for another
    shape. ACC, BWT and FWT: Lopez-Paz & Ranzato 2017, arXiv:1706.08840, section 2. Forgetting: Chaudhry et al. 2018,
    arXiv:1801.10112, equation 3. A positive BWT means that later tasks helped earlier ones; a positive FWT means that a
    task gained before it was trained.
    """  # fmt: skip
    tasks = len(before)
    if not tasks or len(matrix) not in (1, tasks) or any(len(row) != tasks for row in matrix):
        raise ValueError(f"{tasks} tasks need a matrix of {tasks} x {tasks} or 1 x {tasks} scores")
    last = matrix[-1]
    made = {"acc": mean(last)}
    if len(matrix) == 1:
        return made
    earlier = range(tasks - 1)
    made["bwt"] = mean(last[j] - matrix[j][j] for j in earlier)
    made["fwt"] = mean(matrix[j - 1][j] - before[j] for j in range(1, tasks))
    made["forgetting"] = mean(max(matrix[i][j] for i in earlier) - last[j] for j in earlier)
    return made


def separate_scores(matrix: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return `acc` for tasks with one model each: the mean of each task's score by its own model, `R[j][j]`. Nothing is
    carried from task to task, so there are no transfer scores. ValueError unless the matrix is square.
    """
    if not matrix or any(len(row) != len(matrix) for row in matrix):
        raise ValueError("as many models as tasks are expected")
    return {"acc": mean(row[j] for j, row in enumerate(matrix))}
