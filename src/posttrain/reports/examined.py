"""Pool the comparisons and the drifts of several cells (changes and seeds) for one row of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.exams.capabilities import Drift, DriftScore
from posttrain.exams.compare import Comparison
from posttrain.exams.statistics import FEWEST
from posttrain.reports import numbers

__all__ = ["QUADRANTS", "Compared", "pool", "pool_drift"]

QUADRANTS: tuple[str, ...] = ("kept_right", "forgotten", "gained", "kept_wrong")
"""Right before and after; right before and wrong after; wrong before and right after; wrong before and after."""


@dataclass(frozen=True)
class Compared:
    """A trained model compared with the untouched one on an exam's headline: the pooled comparisons of a row's cells.

    n: number of samples of all cells; before, after, difference: means over cells; ci95: from the lowest to the highest
    end of the cells' intervals, so it excludes 0 only when every interval does, on the same side; p_value: the largest
    one, since a difference counts as real only when it is real in every cell; counts: samples in each of `QUADRANTS`,
    None for scores without right and wrong; adjusted: mean shares (forgotten, gained) after subtracting what guessing
    alone would give; score: the name of the compared score; cells: number of pooled cells; agree: number of cells with
    a real difference in the direction of the mean; changed: number of questions with another score after, only for a
    single cell.
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
        """Return the number of questions, or of differing questions, when it is too small to show any difference. None
        in all other cases, and always for several cells.
        """
        if self.cells > 1 or self.agree or not self.difference:
            return None
        if self.n < FEWEST:
            return self.n
        certain = self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]
        return self.changed if certain and self.changed is not None and self.changed < FEWEST else None

    @property
    def different(self) -> bool:
        """Whether the difference is real: the comparison of every cell must say so."""
        return self.agree == self.cells

    def shares(self) -> tuple[float, ...] | None:
        """Return the quadrants as shares of the samples, or None without counts."""
        if self.counts is None or not sum(self.counts):
            return None
        return tuple(count / sum(self.counts) for count in self.counts)


def pool(comparisons: Sequence[Comparison]) -> Compared | None:
    """Pool the comparisons of several cells (changes, seeds) into one; None when there was nothing to compare."""
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
    """Return the mean change of each capability group, and of each of its scores, over the cells that have one."""
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
    """Return the mean of the known values, or None without any."""
    known = [value for value in values if value is not None]
    return numbers.mean(known) if known else None
