"""Drift by capability: which capability each score belongs to, and how much each score changed relative to before.

The groups are those of CapTrack (Thede et al., arXiv 2603.06610): what a model *can* do, what it *will* do by default,
*how* it follows protocols. As in CapTrack, the change of a score is

    (after - before) / |before|         negated where lower is better, not for verbosity and formatting

and a group's change is the mean over its scores. Scores that were 0 before have no relative change: they are listed
with their difference and left out of the mean. The change exam compares with the answers before, so it has its own
baselines: locality was 1, and lengths are measured on both sides. What the change should change has no baseline.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.exams.results import Drift, DriftScore, ExamInfo
from posttrain.exams.score_spec import find_spec

__all__ = ["CAPABILITIES", "CHANGE_EXAM", "Capability", "Drift", "DriftScore", "relative_changes"]


@dataclass(frozen=True)
class Capability:
    """A capability. captrack: its code in CapTrack; direct: more is better or worse, not just different."""

    id: str
    captrack: str
    direct: bool = True


CAPABILITIES: Mapping[str, Capability] = {
    c.id: c
    for c in (
        Capability("can.knowledge", "C1"),
        Capability("can.reasoning", "C2"),
        Capability("can.in_context", "C3"),
        Capability("can.faithfulness", "C4"),
        Capability("can.robust_prompts", "C5a"),
        Capability("can.domains", "C5b"),
        Capability("can.languages", "C5c"),
        Capability("will.refusal", "W1"),
        Capability("will.coverage", "W2"),
        Capability("will.verbosity", "W3a", direct=False),
        Capability("will.formatting", "W3b", direct=False),
        Capability("will.language", ""),  # CapTrack has no group for the language of the answer
        Capability("how.instructions", "H1"),
        Capability("how.schema", "H2"),
        Capability("how.tools", "H3"),
        Capability("how.turns", "H4"),
        Capability("how.long_context", "H5"),
        Capability("how.citations", "H6"),
    )
}
"""Every capability by its id, in the order of reports."""

_GENERAL = {
    "rephrase": "can.robust_prompts",
    **dict.fromkeys(("reverse", "hop"), "can.reasoning"),
    "cross_lingual": "can.languages",
}
_LOCAL = {
    **dict.fromkeys(("same_pattern", "neighbour", "unrelated"), "can.knowledge"),
    "format": "how.schema",
    "refusal": "will.refusal",
}
CHANGE_EXAM: Mapping[str, str] = {
    "reliability": "can.knowledge",
    **{f"generality.{kind}": group for kind, group in _GENERAL.items()},
    **{f"{part}.{kind}": group for part in ("locality", "strict") for kind, group in _LOCAL.items()},
    **dict.fromkeys(("leak", "likelihood.reliability"), "can.knowledge"),
    **{f"likelihood.{kind}": group for kind, group in _GENERAL.items()},
    **dict.fromkeys(("drift.target_kl", "drift.unrelated_kl"), "can.knowledge"),
    **dict.fromkeys(("length.before", "length.after", "length.cut"), "will.verbosity"),
}
"""Score of the change exam -> capability. Only locality and length count towards a group's change: the other scores are
about the change itself, or measure locality again."""


def relative_changes(
    before: Mapping[str, float], after: Mapping[str, float], exams: Mapping[str, ExamInfo]
) -> dict[str, Drift]:
    """Return capability -> its relative change with the scores behind it; capabilities without a score are absent. An
    exam that has chosen a setting is left out.

    before, after: `<exam>.<score>` -> value, as in a study's results; scores of the change exam have no prefix, and are
    in `after`. In addition to an exam's own mapping, `robust.<headline>` counts as robustness to prompts, and
    `calibration.selective_area` as faithfulness: whether confidence separates right from wrong (ECE is near 0 in good
    models, so its relative change would dominate all others). ValueError for a capability that does not exist.
    """
    groups: dict[str, list[DriftScore]] = {name: [] for name in CAPABILITIES}
    for exam, info in exams.items():
        if info.kind == "change" or info.role == "select":
            continue
        common = {"calibration.selective_area": "can.faithfulness"}  # scores that any exam may have
        if info.headline:
            common[f"robust.{info.headline}"] = "can.robust_prompts"
        for score, group in {**common, **info.capabilities}.items():
            if group not in groups:
                raise ValueError(f"exam '{exam}': no capability is called '{group}'")
            key = f"{exam}.{score}"
            if key in after:
                spec = find_spec(score, info.scores)
                higher = spec is None or spec.higher_is_better
                groups[group].append(_entry(key, before.get(key), after[key], group, higher=higher))
    for score, group in CHANGE_EXAM.items():
        if score in after and score.startswith(("locality.", "length.after")):
            old = 1.0 if score.startswith("locality.") else after.get("length.before")
            groups[group].append(_entry(score, old, after[score], group, higher=True))
    found = {}
    for name, entries in groups.items():
        counted = [entry.change for entry in entries if entry.change is not None]
        change = sum(counted) / len(counted) if counted else None
        if entries:
            found[name] = Drift(change, "better" if CAPABILITIES[name].direct else "none", tuple(entries))
    return found


def _entry(key: str, old: float | None, new: float, group: str, *, higher: bool) -> DriftScore:
    sign = 1 if higher or not CAPABILITIES[group].direct else -1
    return DriftScore(
        key,
        old,
        new,
        None if old is None else new - old,
        sign * (new - old) / abs(old) if old else None,
        "not asked before" if old is None else "" if old else "was 0 before: no relative change",
    )
