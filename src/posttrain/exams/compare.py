"""Compare two models on the same samples: is there a difference, and which samples were forgotten and gained?

Samples are paired by their key; disturbed questions are left out. Right before and wrong after is forgetting (1 → 0),
wrong before and right after is backward transfer (0 → 1): Harmon, Hochlehnert, Bethge, Prabhu, "Mapping Post-Training
Forgetting in Language Models at Scale", arXiv 2510.17776.

The chance-adjusted forms assume that a model either knows the answer, or chooses uniformly among its k choices,
independently of the other model (docs/metrics.md derives them):

    p10 = (P(1 → 0) - P(0 → 0) / (k-1)) * k / (k-1)        truly forgotten
    p01 = (P(0 → 1) - P(0 → 0) / (k-1)) * k / (k-1)        truly gained

They are linear in the shares, so with questions of different k every sample adds its own term and the mean is unbiased;
a question without choices adds [1 → 0]. Nothing is cut at 0: below 0, the wrong answers of the two models agree more
often than those of independent guessers.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from posttrain.exams.records import Sample
from posttrain.exams.statistics import FEWEST, SIGNIFICANT, Interval, mcnemar, paired_bootstrap, wilson

__all__ = ["Comparison", "Quadrants", "compare", "quadrants"]


class Quadrants(NamedTuple):
    """Keys of samples by right or wrong before and after, in the order of the file before."""

    kept_right: list[str]
    forgotten: list[str]
    gained: list[str]
    kept_wrong: list[str]


@dataclass(frozen=True)
class Comparison:
    """The comparison of the samples that both models have; None where a value does not apply.

    n: number of pairs; score: the compared score, which is the headline, or `correct` if samples do not have the
    headline (it is a score of the whole data set); before, after: the means of this score; difference: after - before,
    with its paired bootstrap interval; p_value: of McNemar's exact test, if all pairs have `correct`; different: see
    `compare`; better: whether a difference is in the good direction.

    kept_right ... kept_wrong: counts; forgotten_share, gained_share: of all n, with Wilson intervals; *_adjusted: the
    chance-adjusted estimates of the module docstring (None if no sample has `choices`), which may be below 0; chance:
    the accuracy of guessing, if every sample has `choices`; unpaired: number of samples (originals) that only one side
    has, or that have another number of choices; changed: number of pairs with a different score after; with fewer than
    `FEWEST` no difference can be shown.
    """

    n: int
    headline: str
    score: str
    before: float | None
    after: float | None
    difference: float | None
    ci95: Interval | None
    p_value: float | None
    different: bool
    better: bool | None
    higher_is_better: bool = True
    kept_right: int | None = None
    forgotten: int | None = None
    gained: int | None = None
    kept_wrong: int | None = None
    forgotten_share: float | None = None
    gained_share: float | None = None
    forgotten_ci95: Interval | None = None
    gained_ci95: Interval | None = None
    forgotten_adjusted: float | None = None
    gained_adjusted: float | None = None
    chance: float | None = None
    unpaired: int = 0
    changed: int | None = None
    notes: list[str] = field(default_factory=list)
    """What a reader must know: samples not paired, another score than the headline."""

    @property
    def too_few(self) -> str:
        """Why too few questions were asked, or differ, to show a difference; empty otherwise."""
        if self.different or not self.difference:
            return ""
        if self.n < FEWEST:
            return f"too few questions ({self.n})"
        certain = self.ci95 is not None and not self.ci95.low <= 0 <= self.ci95.high
        few = certain and self.changed is not None and self.changed < FEWEST
        return f"too few questions differ ({self.changed})" if few else ""


def compare(
    before: Sequence[Sample], after: Sequence[Sample], *, headline: str, seed: int = 0, higher_is_better: bool = True
) -> Comparison:
    """Compare two models' samples of one exam.

    `different` is True only if the paired interval of the difference excludes 0, at least 6 pairs differ, and, if every
    pair has `correct`, McNemar's exact test also gives p < 0.05. The interval uses the size of a difference but is too
    narrow for few samples; McNemar's test is exact for any number but uses only right and wrong. With both, less than 5
    % of equal models are called different.
    """
    pairs, unpaired, notes = _paired(before, after)
    marked = bool(pairs) and all(a.correct is not None and b.correct is not None for a, b in pairs)
    score, values = _values(pairs, headline, marked)
    if pairs and not values:
        notes.append(f"nothing to compare: samples have neither '{headline}' nor right and wrong")
    elif pairs and score != headline:
        notes.append(f"'{headline}' is a score of all samples together; compared is the share that is right")
    elif len(values) < len(pairs):
        notes.append(f"{len(pairs) - len(values)} of {len(pairs)} pairs have no '{headline}'")
    old, new = [a for a, _ in values], [b for _, b in values]
    n = len(values)
    difference = sum(new) / n - sum(old) / n if n else None
    interval = paired_bootstrap(old, new, seed=seed)
    cells = _cells(pairs)
    p_value = mcnemar(len(cells.forgotten), len(cells.gained)) if marked else None
    changed = sum(a != b for a, b in values)
    different = (
        interval is not None
        and not interval.low <= 0 <= interval.high
        and changed >= FEWEST
        and (p_value is None or p_value < SIGNIFICANT)
    )
    reworded = sum(a.answer.split() != b.answer.split() for a, b in pairs if a.choices is None)
    if not different and 2 * reworded > len(pairs):
        notes.append(f"{reworded} of {len(pairs)} answers are other words than before, which this score does not tell")
    return Comparison(
        n=n,
        headline=headline,
        score=score,
        before=sum(old) / n if n else None,
        after=sum(new) / n if n else None,
        difference=difference,
        ci95=interval,
        p_value=p_value,
        different=different,
        better=(difference > 0) == higher_is_better if different and difference is not None else None,
        higher_is_better=higher_is_better,
        **(_forgetting(pairs, cells) if marked else {}),
        unpaired=unpaired,
        changed=changed,
        notes=notes,
    )


def quadrants(before: Sequence[Sample], after: Sequence[Sample]) -> Quadrants:
    """Return the keys behind the counts of a comparison; pairs without `correct` are in none."""
    return _cells(_paired(before, after)[0])


def _cells(pairs: Sequence[tuple[Sample, Sample]]) -> Quadrants:
    found = Quadrants([], [], [], [])
    for a, b in pairs:
        if a.correct is not None and b.correct is not None:
            found[2 * (not a.correct) + (not b.correct)].append(a.key)
    return found


def _paired(before: Sequence[Sample], after: Sequence[Sample]) -> tuple[list[tuple[Sample, Sample]], int, list[str]]:
    """Return the pairs of originals, the number of samples without a partner, and notes about these."""
    old, new = ({s.key: s for s in samples if not s.perturbation} for samples in (before, after))
    pairs = [(old[key], new[key]) for key in old if key in new and old[key].choices == new[key].choices]
    only_old, only_new = len(old.keys() - new.keys()), len(new.keys() - old.keys())
    changed = len(old.keys() & new.keys()) - len(pairs)
    notes = []
    if only_old:
        notes.append(f"{only_old} sample{' is' if only_old == 1 else 's are'} only in the answers before")
    if only_new:
        notes.append(f"{only_new} sample{' is' if only_new == 1 else 's are'} only in the answers after")
    if changed:
        notes.append(f"{changed} sample{' has' if changed == 1 else 's have'} another number of choices after")
    return pairs, only_old + only_new + changed, notes


def _values(
    pairs: Sequence[tuple[Sample, Sample]], headline: str, marked: bool
) -> tuple[str, list[tuple[float, float]]]:
    """Return the name of the score that is compared, and its values before and after."""
    found = [
        (float(a.scores[headline]), float(b.scores[headline]))
        for a, b in pairs
        if headline in a.scores and headline in b.scores
    ]
    if not found and marked:
        return "correct", [(float(bool(a.correct)), float(bool(b.correct))) for a, b in pairs]
    return headline, found


def _forgetting(pairs: Sequence[tuple[Sample, Sample]], cells: Quadrants) -> dict[str, Any]:
    n = len(pairs)
    made: dict[str, Any] = {name: len(keys) for name, keys in cells._asdict().items()}
    for name in ("forgotten", "gained"):
        made |= {f"{name}_share": made[name] / n, f"{name}_ci95": wilson(made[name], n)}
    choices = [a.choices for a, _ in pairs]
    if any(k is not None for k in choices):
        made["forgotten_adjusted"] = sum(_term(a, b) for a, b in pairs) / n
        made["gained_adjusted"] = sum(_term(b, a) for a, b in pairs) / n
    if all(k is not None for k in choices):
        made["chance"] = sum(1 / k for k in choices if k) / n
    return made


def _term(first: Sample, second: Sample) -> float:
    """Return one sample's term from first to second: ([1 → 0] - [0 → 0] / (k-1)) * k / (k-1); [1 → 0] without choices.
    ValueError for fewer than two choices."""
    if second.correct:
        return 0.0
    if first.choices is None:
        return float(bool(first.correct))
    others = first.choices - 1
    if others < 1:
        raise ValueError(f"sample {first.key} has {first.choices} choices; a choice is between two at least")
    return (1.0 if first.correct else -1 / others) * first.choices / others
