"""What results.json says of exams beyond the change exam: which there are, the untouched model, human reference rows,
comparisons with the untouched model. Everything is optional, so that folders of older versions are read as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from posttrain.exams.statistics import FEWEST
from posttrain.reports import numbers

__all__ = [
    "Before",
    "Compared",
    "Drift",
    "DriftScore",
    "ExamInfo",
    "Reference",
    "floats",
    "intervals",
    "pool",
    "pool_drift",
    "read_before",
    "read_compare",
    "read_drift",
    "read_exams",
    "read_reference",
]

CHANGE = "change"
"""The change exam, whose scores have no prefix and whose part of the page is its own."""

QUADRANTS: tuple[str, ...] = ("kept_right", "forgotten", "gained", "kept_wrong")
"""Right before and after; right before, wrong after; wrong before, right after; wrong before and after."""


@dataclass(frozen=True)
class ExamInfo:
    """One exam. headline and the keys of capabilities are scores without the exam's name; chance: the headline of
    guessing."""

    name: str
    headline: str
    signature: str = ""
    capabilities: Mapping[str, str] = field(default_factory=dict)
    chance: float | None = None
    higher_is_better: bool = True
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The headline's key in `scores` of results.json."""
        return f"{self.name}.{self.headline}"

    @property
    def capability(self) -> str:
        """The group that the headline belongs to; empty when it is in none."""
        return self.capabilities.get(self.headline, "")

    def score(self, key: str) -> str | None:
        """The score's own name when a key of `scores` belongs to this exam, else None."""
        return key.removeprefix(f"{self.name}.") if key.startswith(f"{self.name}.") else None


@dataclass(frozen=True)
class Before:
    """The untouched model on the exams."""

    model: str
    scores: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float]]
    n: Mapping[str, int]
    folder: str
    cost: Mapping[str, float]


@dataclass(frozen=True)
class Reference:
    """A row of scores from a file, such as those of people."""

    name: str
    scores: Mapping[str, float]


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


class DriftScore(NamedTuple):
    """A score's part in its group. before: None where it was not asked; change: None without one or with 0 before."""

    score: str
    before: float | None
    after: float
    change: float | None


@dataclass(frozen=True)
class Drift:
    """The relative change of a capability group with the scores behind it (`exams/capabilities.py`).

    change is None where no score has one; directed: whether more is better, else a change is only a change.
    """

    change: float | None
    directed: bool
    scores: tuple[DriftScore, ...]


def floats(values: Any) -> dict[str, float]:
    """Numbers of a mapping; a missing (null) or non-finite value is left out, the table shows a dash."""
    pairs = ((str(k), v) for k, v in values.items()) if isinstance(values, Mapping) else ()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and numbers.finite(float(v))}


def intervals(values: Any) -> dict[str, tuple[float, float]]:
    """Pairs of numbers of a mapping; others are left out."""
    pairs = ((str(k), v) for k, v in values.items()) if isinstance(values, Mapping) else ()
    return {k: pair for k, v in pairs if (pair := _pair(v)) is not None}


def _pair(value: Any) -> tuple[float, float] | None:
    if isinstance(value, list | tuple) and len(value) == 2 and all(_number(v) is not None for v in value):
        return float(value[0]), float(value[1])
    return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and numbers.finite(float(value)) else None


def read_exams(results: Mapping[str, Any]) -> tuple[ExamInfo, ...]:
    """The exams of results.json other than the change exam, in its order."""
    node = results.get("exams")
    found = []
    for name, entry in node.items() if isinstance(node, Mapping) else ():
        if name == CHANGE or not isinstance(entry, Mapping) or not entry.get("headline"):
            continue
        prefix = f"{name}."
        found.append(
            ExamInfo(
                name=str(name),
                headline=str(entry["headline"]).removeprefix(prefix),
                signature=str(entry.get("signature") or ""),
                capabilities={
                    str(k).removeprefix(prefix): str(v) for k, v in (entry.get("capabilities") or {}).items()
                },
                chance=_number(entry.get("chance")),
                higher_is_better=bool(entry.get("higher_is_better", True)),
                notes=tuple(map(str, entry.get("notes") or ())),
            )
        )
    return tuple(found)


def read_before(results: Mapping[str, Any]) -> tuple[Before, ...]:
    """The untouched models."""
    return tuple(
        Before(
            str(entry.get("model", "")),
            floats(entry.get("scores")),
            intervals(entry.get("ci95")),
            entry.get("n") or {},
            str(entry.get("folder") or ""),
            floats(entry.get("cost")),
        )
        for entry in results.get("before") or ()
        if isinstance(entry, Mapping)
    )


def read_reference(results: Mapping[str, Any]) -> tuple[Reference, ...]:
    """The rows of the study's `reference` file."""
    rows = [entry for entry in results.get("reference") or () if isinstance(entry, Mapping)]
    return tuple(Reference(str(entry.get("name") or "?"), floats(entry.get("scores"))) for entry in rows)


def read_compare(node: Any) -> dict[str, Compared]:
    """Exam -> comparison of a cell with the untouched model. An entry without its numbers is left out."""
    found = {}
    for name, entry in node.items() if isinstance(node, Mapping) else ():
        values = {key: _number(entry.get(key)) for key in ("before", "after", "difference")}
        if any(value is None for value in values.values()):
            continue
        counts = tuple(entry.get(key) for key in QUADRANTS)
        found[str(name)] = Compared(
            n=int(entry.get("n") or 0),
            before=values["before"] or 0.0,
            after=values["after"] or 0.0,
            difference=values["difference"] or 0.0,
            ci95=_pair(entry.get("ci95")),
            p_value=_number(entry.get("p_value")),
            counts=None if None in counts else (int(counts[0]), int(counts[1]), int(counts[2]), int(counts[3])),
            adjusted=(_number(entry.get("forgotten_adjusted")), _number(entry.get("gained_adjusted"))),
            chance=_number(entry.get("chance")),
            score=str(entry.get("score") or ""),
            notes=tuple(map(str, entry.get("notes") or ())),
            agree=int(bool(entry.get("different"))),
            changed=None if (changed := _number(entry.get("changed"))) is None else int(changed),
        )
    return found


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


def read_drift(node: Any) -> dict[str, Drift]:
    """Capability group -> relative change of a cell."""
    found = {}
    for group, entry in node.items() if isinstance(node, Mapping) else ():
        if isinstance(entry, Mapping):
            scores = tuple(
                DriftScore(str(one["score"]), _number(one.get("before")), after, _number(one.get("change")))
                for one in entry.get("scores") or ()
                if isinstance(one, Mapping) and one.get("score") and (after := _number(one.get("after"))) is not None
            )
            found[str(group)] = Drift(_number(entry.get("change")), entry.get("direction") != "none", scores)
    return found


def pool_drift(each: Sequence[Mapping[str, Drift]]) -> dict[str, Drift]:
    """Each group's mean change over the cells that have one, and so each score's."""
    pooled = {}
    for group in dict.fromkeys(group for cell in each for group in cell):
        own = [cell[group] for cell in each if group in cell]
        names = dict.fromkeys(one.score for drift in own for one in drift.scores)
        scores = tuple(_pool_score([s for drift in own for s in drift.scores if s.score == name]) for name in names)
        pooled[group] = Drift(_mean([drift.change for drift in own]), own[0].directed, scores)
    return pooled


def _pool_score(each: Sequence[DriftScore]) -> DriftScore:
    before, change = _mean([one.before for one in each]), _mean([one.change for one in each])
    return DriftScore(each[0].score, before, numbers.mean([one.after for one in each]), change)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return numbers.mean(known) if known else None
