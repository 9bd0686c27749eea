"""Comparisons and drifts of several cells as one: changes and seeds pooled for a row of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.exams.capabilities import Drift, DriftScore
from posttrain.exams.compare import Comparison
from posttrain.exams.statistics import FEWEST
from posttrain.reports import numbers

__all__ = ["QUADRANTS", "Compared", "pool", "pool_drift"]

QUADRANTS: tuple[str, ...] = ("kept_right", "forgotten", "gained", "kept_wrong")
"""Right before and after; right before, wrong after; wrong before, right after; wrong before and after."""


@dataclass(frozen=True)
class Compared:
    """A model against the untouched one on an exam's headline: the comparisons of a row's cells as one.

    n: samples of all cells; before, after, difference: means; ci95: the span of the cells' intervals, which excludes 0
    only when each of them does on the same side; p_value: the largest, since a difference is called one only when it is
    one in every cell; counts: by quadrant, None where nothing is right or wrong; adjusted: (forgotten, gained) as
    shares with what guessing alone would give taken off, means; score: what was compared; cells, agree: how many were
    pooled and in how many of them the difference is one in the direction of the mean; changed: pairs whose score is
    another after, of one cell.
    """

    n: int
    before: float
    after: float
    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None
    counts: tuple[int, ...] | None
    adjusted: tuple[float | None, float | None]
    score: str
    cells: int
    agree: int
    changed: int | None

    @property
    def too_few(self) -> int | None:
        """Of one cell with so few questions, or so few that differ, that no difference could be told: how many."""
        if self.cells > 1 or self.agree or not self.difference:
            return None
        if self.n < FEWEST:
            return self.n
        certain = self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]
        return self.changed if certain and self.changed is not None and self.changed < FEWEST else None

    @property
    def different(self) -> bool:
        """A real difference: of one cell when its comparison says so, of several when it is one in each of them."""
        return self.agree == self.cells

    def shares(self) -> tuple[float, ...] | None:
        """The quadrants as shares of the samples."""
        if self.counts is None or not sum(self.counts):
            return None
        return tuple(count / sum(self.counts) for count in self.counts)


def pool(comparisons: Sequence[Comparison]) -> Compared | None:
    """Comparisons of several cells (changes, seeds) as one; None where there was nothing to compare."""
    each = [one for one in comparisons if one.difference is not None]
    before, after = _mean([one.before for one in each]), _mean([one.after for one in each])
    difference = _mean([one.difference for one in each])
    if before is None or after is None or difference is None:
        return None
    values = [one.p_value for one in each if one.p_value is not None]
    ends = [one.ci95 for one in each if one.ci95 is not None]
    counts = [(one.kept_right, one.forgotten, one.gained, one.kept_wrong) for one in each]
    judged = [[count or 0 for count in four] for four in counts if four[0] is not None]
    return Compared(
        n=sum(one.n for one in each),
        before=before,
        after=after,
        difference=difference,
        ci95=(min(low for low, _ in ends), max(high for _, high in ends)) if len(ends) == len(each) else None,
        p_value=max(values) if len(values) == len(each) else None,
        counts=tuple(map(sum, zip(*judged, strict=True))) if len(judged) == len(each) else None,
        adjusted=(_mean([one.forgotten_adjusted for one in each]), _mean([one.gained_adjusted for one in each])),
        score=each[0].score,
        cells=len(each),
        agree=sum(one.different and (one.difference or 0.0) * difference > 0 for one in each),
        changed=each[0].changed if len(each) == 1 else None,
    )


def pool_drift(each: Sequence[Mapping[str, Drift]]) -> dict[str, Drift]:
    """Each group's mean change over the cells that have one, and so each score's."""
    pooled = {}
    for group in dict.fromkeys(group for cell in each for group in cell):
        own = [cell[group] for cell in each if group in cell]
        names = dict.fromkeys(one.score for drift in own for one in drift.scores)
        scores = tuple(_pool_score([s for drift in own for s in drift.scores if s.score == name]) for name in names)
        pooled[group] = Drift(_mean([drift.change for drift in own]), own[0].direction, scores)
    return pooled


def _pool_score(each: Sequence[DriftScore]) -> DriftScore:
    before, change = _mean([one.before for one in each]), _mean([one.change for one in each])
    return DriftScore(each[0].score, before, numbers.mean([one.after for one in each]), change=change)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return numbers.mean(known) if known else None
