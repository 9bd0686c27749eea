"""Measure whether a model is right as often as it is confident: calibration error and selective accuracy.

Inputs, one per sample: the probability (0 to 1) that the model gave to its answer, and whether the answer was right.
All functions raise ValueError without samples, for lists of different lengths, and for values outside 0 to 1.

    ECE = sum over bins of |bin| / N * | mean confidence - share right |            0 to 1, 0 is calibrated

    ece_equal_mass    bins of equally many samples, 10 by default: HELM's `ece_10_bin` (arXiv 2211.09110, by the library
                      of arXiv 1909.10155). A boundary lies midway between neighbours; equal confidences share a bin
    ece_equal_width   bins (0, 1/B], (1/B, 2/B], ...: Guo et al. 2017 (arXiv 1706.04599), who used 15 bins

    selective_accuracy   share right among the most confident int(coverage * N) + 1 samples (HELM's acc at 10 %)
    selective_area       mean over m = 1..N of the share right among the m most confident (HELM's area)

Samples of equal confidence have no order: each counts with the mean of all samples of this confidence, so the order of
the file changes nothing (HELM uses the order of the file). With fewer than about 300 samples, ECE is large by chance
alone.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["ece_equal_mass", "ece_equal_width", "selective_accuracy", "selective_area"]

Array = NDArray[np.float64]


def ece_equal_mass(confidences: Sequence[float], correct: Sequence[bool], *, bins: int = 10) -> float:
    """Return the expected calibration error over bins of equally many samples, 0 to 1."""
    confidence, right = _checked(confidences, correct)
    groups = np.array_split(np.sort(confidence), min(bins, len(confidence)))
    edges = [(left[-1] + after[0]) / 2 for left, after in pairwise(groups)]
    return _error(confidence, right, np.unique(edges))


def ece_equal_width(confidences: Sequence[float], correct: Sequence[bool], *, bins: int = 10) -> float:
    """Return the expected calibration error over bins of equal width, 0 to 1."""
    confidence, right = _checked(confidences, correct)
    return _error(confidence, right, np.arange(1, bins) / bins)


def selective_accuracy(confidences: Sequence[float], correct: Sequence[bool], *, coverage: float = 0.1) -> float:
    """Return the share of right answers among the most confident samples, 0 to 1. coverage: the share of samples."""
    shares = _selective(confidences, correct)
    return float(shares[min(int(coverage * len(shares)), len(shares) - 1)])


def selective_area(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """Return the area under the curve of accuracy against coverage, 0 to 1."""
    return float(_selective(confidences, correct).mean())


def _error(confidence: Array, right: Array, edges: Array) -> float:
    """Return the ECE. edges: the upper boundaries of all bins except the last; a value on one is in the lower bin."""
    places = np.searchsorted(edges, confidence)
    gaps = np.bincount(places, weights=confidence - right)
    return float(np.abs(gaps).sum() / len(confidence))


def _selective(confidences: Sequence[float], correct: Sequence[bool]) -> Array:
    """Return the share of right answers among the m most confident samples, for m = 1..N: (N,)."""
    confidence, right = _checked(confidences, correct)
    _, places, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    # (N,): share right among all samples of the same confidence
    fair = (np.bincount(places, weights=right) / counts)[places]
    order = np.argsort(-confidence, kind="stable")
    shares: Array = np.cumsum(fair[order]) / np.arange(1, len(order) + 1)
    return shares


def _checked(confidences: Sequence[float], correct: Sequence[bool]) -> tuple[Array, Array]:
    """Return both inputs as arrays (N,). Raise ValueError when they do not fit together or are no probabilities."""
    confidence, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if len(confidence) != len(right) or not len(right):
        raise ValueError(f"{len(confidence)} confidences for {len(right)} samples")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence is a probability, from 0 to 1")
    return confidence, right
