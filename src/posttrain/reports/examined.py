"""Comparisons and drifts of several cells as one: changes and seeds pooled for a row of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.exams.capabilities import Drift, DriftScore
from posttrain.exams.compare import Comparison
from posttrain.exams.statistics import FEWEST
from posttrain.reports import numbers

__all__ = ["QUADRANTS", "Compared", "compared", "pool", "pool_drift"]

QUADRANTS: tuple[str, ...] = ("kept_right", "forgotten", "gained", "kept_wrong")
"""Right before and after; right before, wrong after; wrong before, right after; wrong before and after."""


@dataclass(frozen=True)
class Compared:
    """A model against the untouched one on an exam's headline: `exams/compare.py`, over one cell or pooled.

    counts: by quadrant, None where nothing is right or wrong; adjusted: (forgotten, gained) as shares with what
    guessing alone would give taken off; cells, agree: how many cells were pooled and in how many of them the difference
    is one in the direction of the mean; score: what was compared where it is not the headline itself; changed: pairs
    whose score is another after, of one cell.
    """

    n: int
    before: float
    after: float
    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None
    counts: tuple[int, int, int, int] | None
    adjusted: tuple[float | None, float | None]
    chance: float | None
    score: str = ""
    notes: tuple[str, ...] = ()
    cells: int = 1
    agree: int = 0
    changed: int | None = None

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


def compared(one: Comparison) -> Compared | None:
    """One cell's comparison; None where there was nothing to compare."""
    if one.before is None or one.after is None or one.difference is None:
        return None
    counts = None
    if one.kept_right is not None:
        counts = (one.kept_right, one.forgotten or 0, one.gained or 0, one.kept_wrong or 0)
    return Compared(
        n=one.n,
        before=one.before,
        after=one.after,
        difference=one.difference,
        ci95=one.ci95,
        p_value=one.p_value,
        counts=counts,
        adjusted=(one.forgotten_adjusted, one.gained_adjusted),
        chance=one.chance,
        score=one.score,
        notes=tuple(one.notes),
        agree=int(one.different),
        changed=one.changed,
    )


def pool(each: Sequence[Compared]) -> Compared | None:
    """Comparisons of several cells (changes, seeds) as one.

    before, after, difference: means. counts: sums. adjusted: means. p_value: the largest of the cells, since a
    difference is called one only when it is one in every cell. ci95: the span of the cells' intervals, which excludes 0
    only when each of them does on the same side.
    """
    if len(each) < 2:
        return each[0] if each else None
    mean = numbers.mean([c.difference for c in each])
    values = [c.p_value for c in each]
    ends = [c.ci95 for c in each if c.ci95 is not None]
    counts = [c.counts for c in each if c.counts is not None]
    sums = [sum(column) for column in zip(*counts, strict=True)]
    return Compared(
        n=sum(c.n for c in each),
        before=numbers.mean([c.before for c in each]),
        after=numbers.mean([c.after for c in each]),
        difference=mean,
        ci95=(min(low for low, _ in ends), max(high for _, high in ends)) if len(ends) == len(each) else None,
        p_value=None if None in values else max(v for v in values if v is not None),
        counts=(sums[0], sums[1], sums[2], sums[3]) if len(counts) == len(each) else None,
        adjusted=(_mean([c.adjusted[0] for c in each]), _mean([c.adjusted[1] for c in each])),
        chance=each[0].chance,
        score=each[0].score,
        notes=tuple(dict.fromkeys(note for c in each for note in c.notes)),
        cells=len(each),
        agree=sum(c.agree for c in each if c.different and c.difference * mean > 0),
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
