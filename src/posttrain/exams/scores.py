"""Scores of the change exam from its samples, with the number of probes and the interval of each score.

docs/exam.md explains the scores. A locality probe that is not counted is in none of locality, kept, same, strict and
judge, which ask the same: the required content was not there before, so nothing can be lost. Leak, manner, drift and
lengths ask something else.

Shares have Wilson intervals, over several changes with the effective number of probes. Means have a bootstrap interval
over probes or changes, Student's t for few values, and none for one value. A score over no probes is absent, not 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from posttrain.exams.records import ProbeResult
from posttrain.exams.score_spec import ScoreSpec
from posttrain.exams.statistics import Interval, Score, cohen_kappa, mean_over_changes, share_over_changes, wilson

__all__ = [
    "CUT_FORM",
    "HEADLINE",
    "NO_FORM",
    "NO_REFUSAL",
    "SPECS",
    "kind_of",
    "lacking",
    "merged_notes",
    "notes_of",
    "outcomes",
    "over_changes",
    "score",
    "uncounted",
]

HEADLINE = "reliability"
"""The score that stands for the change exam."""
_LOCAL = ("same_pattern", "neighbour", "unrelated", "format", "refusal")
_GENERAL = ("rephrase", "reverse", "hop", "cross_lingual")
SPECS: tuple[ScoreSpec, ...] = (
    ScoreSpec("reliability", "reliability", group="reliability"),
    *(ScoreSpec(f"generality.{kind}", kind, group="generality") for kind in _GENERAL),
    *(ScoreSpec(f"locality.{kind}", kind, group="locality") for kind in _LOCAL),
    # The ends of leak mirror those of kept: kept, at most one answer in ten leaks; lost, half of them do.
    ScoreSpec("leak", "leak", better="less", group="leak", ends=(0.1, 0.5)),
    *(ScoreSpec(f"same.{kind}", kind, group="same") for kind in _LOCAL),
    *(ScoreSpec(f"kept.{kind}", kind, "grade", group="kept") for kind in _LOCAL),
    ScoreSpec("manner", "manner", "grade", group="manner"),
    *(ScoreSpec(f"judge.{kind}", kind, group="judge") for kind in _LOCAL),
    ScoreSpec("judge.agreement", "agreement", group="judge"),
    ScoreSpec("judge.kappa", "kappa", "grade", group="judge"),
    *(ScoreSpec(f"strict.{kind}", kind, group="strict") for kind in _LOCAL),
    ScoreSpec("drift.target_kl", "target_kl", "nats", "none", "drift"),  # a large drift on the targets is wanted
    ScoreSpec("drift.unrelated_kl", "unrelated_kl", "nats", "less", "drift", (0.25, 1.0)),
    *(ScoreSpec(f"likelihood.{kind}", kind, group="likelihood") for kind in ("reliability", *_GENERAL, *_LOCAL)),
    ScoreSpec("length.before", "before", "tokens", "none", "length"),
    ScoreSpec("length.after", "after", "tokens", "none", "length"),
    ScoreSpec("length.cut", "cut", "share", "none", "length"),
)
"""Every score of the change exam, in the order of tables."""
_SHARES = frozenset(spec.key for spec in SPECS if spec.unit == "share")

_COUNTED = re.compile(r"(\d+) of (\d+) (.*)", re.DOTALL)
_UNCOUNTED = re.compile(r"(\d+) of (\d+) probes of (\S+) are not counted: (.*)", re.DOTALL)


def score(samples: Sequence[ProbeResult]) -> dict[str, Score]:
    """Return the scores of one change's samples."""
    made: dict[str, Score] = {}
    groups = list(dict.fromkeys(s.group for s in samples))
    for group in groups:
        _share(made, group, [s.ok for s in samples if s.group == group])
    local = [group for group in groups if group.startswith("locality.")]
    counted = [s for s in samples if s.ok is not None]
    for group in local:
        own = [s for s in counted if s.group == group]
        _mean(made, f"kept.{_kind(group)}", [s.kept for s in own if s.kept is not None])
        _share(made, f"same.{_kind(group)}", [s.band == "same" for s in own if s.kept is not None])
    for group in local:
        _share(made, f"strict.{_kind(group)}", [s.strict for s in counted if s.group == group])
    _mean(made, "manner", [s.manner for s in samples if s.manner is not None])
    _share(made, "leak", [s.leak for s in samples])
    for group in local:
        _share(made, f"judge.{_kind(group)}", [s.judged for s in counted if s.group == group])
    both = [(s.judged, s.ok) for s in counted if s.judged is not None and s.ok is not None]
    _share(made, "judge.agreement", [judged == ok for judged, ok in both])
    kappa = cohen_kappa(both)
    if kappa is not None:
        made["judge.kappa"] = Score(kappa, None, len(both))
    for group in groups:
        _share(made, f"likelihood.{_kind(group)}", [s.new_beats_old for s in samples if s.group == group])
    for name, group in (("drift.target_kl", "reliability"), ("drift.unrelated_kl", "locality.unrelated")):
        _per_token(made, name, [s for s in samples if s.group == group])
    _mean(made, "length.before", [s.tokens_before for s in samples])
    _mean(made, "length.after", [s.tokens_after for s in samples])
    _share(made, "length.cut", [not s.ended_after for s in samples])
    return made


def outcomes(samples: Sequence[ProbeResult]) -> dict[str, tuple[int | None, ...]]:
    """Return locality score -> for each probe, in the file's order: 1 kept, 0 not kept, None not counted."""
    found: dict[str, tuple[int | None, ...]] = {}
    for s in samples:
        if s.group.startswith("locality."):
            found[s.group] = (*found.get(s.group, ()), None if s.ok is None else int(s.ok))
    return found


def _kind(group: str) -> str:
    return group.rpartition(".")[2]


def _share(made: dict[str, Score], name: str, values: Sequence[bool | None]) -> None:
    counted = [value for value in values if value is not None]
    if counted:
        n, found = len(counted), sum(counted)
        made[name] = Score(found / n, wilson(found, n), n)


def _mean(made: dict[str, Score], name: str, values: Sequence[float]) -> None:
    if values:
        made[name] = Score(float(np.mean(values)), mean_over_changes(values), len(values))


def _per_token(made: dict[str, Score], name: str, samples: Sequence[ProbeResult]) -> None:
    """Add the sum of KL in nats over the sum of tokens; the interval is that of the mean of the per-probe means."""
    pairs = [(s.kl_nats, s.kl_tokens) for s in samples if s.kl_nats is not None and s.kl_tokens]
    if pairs:
        _mean(made, name, [kl / tokens for kl, tokens in pairs])
        made[name] = made[name]._replace(value=sum(kl for kl, _ in pairs) / sum(tokens for _, tokens in pairs))


def notes_of(samples: Sequence[ProbeResult]) -> list[str]:
    """Return what a reader must know: probes not counted, answers cut, targets that were met before."""
    notes = []
    for group in dict.fromkeys(s.group for s in samples):
        own = [s for s in samples if s.group == group]
        total, reasons = len(own), Counter(s.note for s in own if s.ok is None)
        notes += [
            f"{left_out} of {total} probes of {group} are not counted: {note}" for note, left_out in reasons.items()
        ]
    _count(notes, samples, lambda s: not s.ended_before, "answers before were cut at max_new_tokens")
    _count(notes, samples, lambda s: not s.ended_after, "answers after were cut at max_new_tokens")
    targets = [s for s in samples if s.group == "reliability"]
    _count(notes, targets, lambda s: bool(s.ok_before), "targets were met before the change already")
    drift = [s for s in samples if s.group in ("reliability", "locality.unrelated")]
    _count(
        notes, drift, lambda s: s.kl_nats is None, "drift probes have no KL (no distributions, or other vocabularies)"
    )
    return notes


def _count(notes: list[str], samples: Sequence[ProbeResult], test: Callable[[ProbeResult], bool], words: str) -> None:
    found = sum(test(s) for s in samples)
    if found:
        notes.append(f"{found} of {len(samples)} {words}")


def merged_notes(notes: Sequence[Sequence[str]]) -> list[str]:
    """Merge the notes of several changes: "1 of 2 ..." and "1 of 3 ..." with the same words become "2 of 5 ...". Only
    changes that have the note count in it.
    """
    sums: dict[str, tuple[int, int]] = {}
    read = (_COUNTED.fullmatch(note) for one in notes for note in one)
    for counted in (one for one in read if one is not None):  # notes_of writes no other form
        found, total = sums.get(counted[3], (0, 0))
        sums[counted[3]] = (found + int(counted[1]), total + int(counted[2]))
    return [f"{found} of {total} {words}" for words, (found, total) in sums.items()]


def over_changes(
    name: str, values: Sequence[float], counted: Sequence[int], own: Interval | None = None
) -> Interval | None:
    """Return the interval of a score's mean over changes. counted: number of probes of each change; own: the interval
    of a single change.
    """
    if len(values) == 1:
        return own
    return share_over_changes(values, counted) if name in _SHARES else mean_over_changes(values)


NO_REFUSAL = "the answer before is no refusal"
NO_FORM = "the answer before has no form: no JSON, list, table or code"
CUT_FORM = "the answer before was cut before it showed a form: raise max_new_tokens"


class Uncounted(NamedTuple):
    """k of a group's n probes are not counted, for this reason."""

    k: int
    n: int
    group: str
    reason: str


def lacking(words: Sequence[str]) -> str:
    """Return why a probe with `keeps` is not counted."""
    if len(words) == 1:
        return f"'{words[0]}' is not in the answer before: check `keeps`"
    named = ", ".join(f"'{word}'" for word in words)
    return f"{named} are not in the answer before: check `keeps`"


def kind_of(reason: str) -> str:
    """Return the kind of a reason: `refusal`, `form`, `cut` or `keeps`."""
    return {NO_REFUSAL: "refusal", NO_FORM: "form", CUT_FORM: "cut"}.get(reason, "keeps")


def uncounted(notes: Iterable[str]) -> list[Uncounted]:
    """Return what an exam's notes say about probes that are not counted; other notes are ignored."""
    found = (_UNCOUNTED.fullmatch(note) for note in notes)
    return [Uncounted(int(one[1]), int(one[2]), one[3], one[4]) for one in found if one is not None]
