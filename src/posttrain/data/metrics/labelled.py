"""Scores of a model with a head over a data set: for classes, tags, and answers in texts. All are 0 to 1, except
Matthews' correlation, -1 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.metrics.classify import accuracy, f1_binary, macro_f1, matthews
from posttrain.data.metrics.reading import em_zh, exact_match, f1_char_bag, f1_squad
from posttrain.data.metrics.spans import has_spans, span_f1
from posttrain.data.scripts import is_cjk

__all__ = ["scores_of_answers", "scores_of_classes", "scores_of_tags"]


def scores_of_classes(
    said: Sequence[tuple[str, ...]], gold: Sequence[tuple[str, ...]], labels: Sequence[str], *, multi_label: bool
) -> dict[str, float]:
    """accuracy, macro_f1 and matthews (one label each), or exact_match, macro_f1 and micro_f1 (several)."""
    if not multi_label:
        ours, theirs = [one[0] for one in said], [one[0] for one in gold]
        return {
            "accuracy": accuracy(ours, theirs),
            "macro_f1": macro_f1(ours, theirs),
            "matthews": matthews(ours, theirs),
        }
    each = [([label in one for one in said], [label in one for one in gold]) for label in labels]
    return {
        "exact_match": accuracy([frozenset(one) for one in said], [frozenset(one) for one in gold]),
        "macro_f1": sum(f1_binary(a, b, positive=True) for a, b in each) / len(labels),
        "micro_f1": f1_binary([x for a, _ in each for x in a], [x for _, b in each for x in b], positive=True),
    }


def scores_of_tags(
    said: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """accuracy over tokens, and span_f1 if the tags mark spans."""
    scores = {"accuracy": accuracy([t for one in said for t in one], [t for one in gold for t in one])}
    if has_spans(labels):
        scores["span_f1"] = span_f1(said, gold)
    return scores


def scores_of_answers(said: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """exact_match and f1 as in SQuAD; over characters, as for DRCD, if the right answers have Chinese characters.

    A question without an answer is right when the prediction is empty (`no_answer_accuracy` covers these only).
    """
    exact: list[float] = []
    f1: list[float] = []
    nothing: list[float] = []
    for ours, theirs in zip(said, gold, strict=True):
        if not theirs:
            nothing.append(float(not ours))
            exact.append(nothing[-1])
            f1.append(nothing[-1])
        elif any(is_cjk(character) for one in theirs for character in one):
            exact.append(em_zh(ours, theirs))
            f1.append(f1_char_bag(ours, theirs))
        else:
            exact.append(exact_match(ours, theirs))
            f1.append(f1_squad(ours, theirs))
    scores = {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}
    return {**scores, "no_answer_accuracy": sum(nothing) / len(nothing)} if nothing else scores
