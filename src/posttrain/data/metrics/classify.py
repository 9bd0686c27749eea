"""Scores of classification and regression over a data set, as GLUE and SuperGLUE use them.

Labels are any hashable values. An answer that is not a label (None, or a text that names no label) counts as wrong.
There must be at least one sample. Lists of different lengths raise ValueError.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

__all__ = ["accuracy", "f1_binary", "macro_f1", "matthews", "pearson", "spearman"]


def accuracy(predicted: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """Return the share of right labels, 0 to 1."""
    _paired(predicted, wanted)
    return sum(a == b for a, b in zip(predicted, wanted, strict=True)) / len(wanted)


def f1_binary(predicted: Sequence[Hashable], wanted: Sequence[Hashable], *, positive: Hashable = 1) -> float:
    """Return F1 = 2 TP / (2 TP + FP + FN) of the label `positive`, 0 to 1; 0 if it is neither wanted nor predicted."""
    _paired(predicted, wanted)
    hits = sum(a == b == positive for a, b in zip(predicted, wanted, strict=True))
    named = sum(a == positive for a in predicted) + sum(b == positive for b in wanted)
    return 2 * hits / named if named else 0.0


def macro_f1(predicted: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """Return the mean of `f1_binary` over every label that is wanted or predicted, 0 to 1."""
    _paired(predicted, wanted)
    labels = dict.fromkeys([*wanted, *predicted])
    return sum(f1_binary(predicted, wanted, positive=label) for label in labels) / len(labels)


def matthews(predicted: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """Return Matthews' correlation, -1 to 1, for any number of labels (Gorodkin 2004).

        (c s - sum_k p_k t_k) / sqrt((s² - sum_k p_k²)(s² - sum_k t_k²))

    c: number of right labels, s: number of samples, p_k, t_k: how often label k is predicted and wanted. The value is 0
    when either side has only one label.
    """  # fmt: skip
    _paired(predicted, wanted)
    said, true, samples = Counter(predicted), Counter(wanted), len(wanted)
    right = sum(a == b for a, b in zip(predicted, wanted, strict=True))
    above = right * samples - sum(count * true[label] for label, count in said.items())
    below = (samples**2 - sum(p * p for p in said.values())) * (samples**2 - sum(t * t for t in true.values()))
    return above / math.sqrt(below) if below else 0.0


def pearson(predicted: Sequence[float], wanted: Sequence[float]) -> float:
    """Return Pearson's correlation, -1 to 1; 0 when either side is constant, for which it is not defined."""
    _paired(predicted, wanted)
    a, b = (np.asarray(values, dtype=np.float64) for values in (predicted, wanted))  # (N,) each
    if (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(np.clip(a @ b, -1, 1))


def spearman(predicted: Sequence[float], wanted: Sequence[float]) -> float:
    """Return Pearson's correlation of the ranks, -1 to 1; equal values share the mean of their ranks."""
    return pearson(_ranks(predicted), _ranks(wanted))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return list((last - (counts - 1) / 2)[inverse])


def _paired(predicted: Sequence[object], wanted: Sequence[object]) -> None:
    """Raise ValueError unless both lists have the same length, which is not 0."""
    if len(predicted) != len(wanted) or not wanted:
        raise ValueError(f"{len(predicted)} predictions for {len(wanted)} samples")
