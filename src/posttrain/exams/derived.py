"""Scores that a task has besides its own: robustness to perturbations, and calibration."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.exams.records import Sample
from posttrain.exams.statistics import Score
from posttrain.exams.task import R, Task, mean_score

__all__ = ["calibration", "robustness"]

ENOUGH_FOR_CALIBRATION = 300
"""Fewer samples give a calibration error that is mostly noise (HELM says so of its own)."""


def robustness(task: Task[R], samples: Sequence[R]) -> tuple[dict[str, Score], list[str]]:
    """`<headline>~<perturbation>`: the headline over the questions that it changed; `robust.<headline>`: the mean over
    questions, changed at least once, of the worst among the original and its disturbed forms.
    """
    name = task.headline
    scores: dict[str, Score] = {}
    notes: list[str] = []
    for kind in task.perturbations:
        own = [sample for sample in samples if sample.perturbation == kind]
        made = task.aggregate(own) if own else {}
        if name in made:
            scores[f"{name}~{kind}"] = made[name]
    if not task.perturbations:
        return scores, notes
    forms: dict[str, list[Sample]] = {}
    for sample in samples:
        if isinstance(sample, Sample):
            forms.setdefault(sample.id, []).append(sample)
    several = [own for own in forms.values() if len(own) > 1]
    if several and all(name in sample.scores for own in several for sample in own):
        worst = min if task.spec.higher_is_better else max
        scores[f"robust.{name}"] = mean_score([worst(sample.scores[name] for sample in own) for own in several])
    elif several:
        notes.append(f"no robust.{name}: it is not a mean over questions; see its values by perturbation")
    return scores, notes


def calibration(samples: Sequence[Sample]) -> tuple[dict[str, Score], list[str]]:
    """Where the respondent shows how sure it is."""
    sure = [s for s in samples if s.confidence is not None and s.correct is not None]
    if not sure:
        return {}, []
    from posttrain.exams.metrics import calibration as metrics

    confidence = [float(s.confidence or 0.0) for s in sure]
    correct = [bool(s.correct) for s in sure]
    made = {
        "ece_em10": metrics.ece_equal_mass(confidence, correct, bins=10),
        "ece_ew10": metrics.ece_equal_width(confidence, correct, bins=10),
        "selective_acc": metrics.selective_accuracy(confidence, correct, coverage=0.1),
        "selective_area": metrics.selective_area(confidence, correct),
    }
    few = len(sure) < ENOUGH_FOR_CALIBRATION
    notes = [f"calibration is over {len(sure)} samples only; below 300 it is mostly noise"] if few else []
    return {f"calibration.{name}": Score(value, None, len(sure)) for name, value in made.items()}, notes
