"""Scores of a model with a head over a data set: for classes, for tags, and for answers in texts.

All scores are 0 to 1, except Matthews' correlation, which is -1 to 1.

Tags may mark spans (such as names). The F1 of spans is CoNLL's: a span is right when its beginning, its end and its
name are right. A tag is `O`, or a letter and a name (`B-PER`). The letters mean: B begins a span, I continues it, E
ends it, and S is a span of one token (so IOB1, IOB2, IOE2 and IOBES can all be read). Tags that break these rules are
read by CoNLL's convention, which conlleval and seqeval use by default: every maximal run is a span, so an `I-PER` after
`O` or after another name begins a span.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from posttrain.data.metrics.classify import accuracy, f1_binary, macro_f1, matthews
from posttrain.data.metrics.reading import em_zh, exact_match, f1_char_bag, f1_squad
from posttrain.data.scripts import is_cjk

__all__ = ["Span", "has_spans", "scores_of_answers", "scores_of_classes", "scores_of_tags", "span_f1", "spans_of"]

OUTSIDE = "O"
"""The tag of a token outside every span."""
LETTERS = frozenset("BIES")
"""The letters of tags that mark spans."""


class Span(NamedTuple):
    """A span of tokens with a name. first, last: the indices of its first and its last token, from 0."""

    name: str
    first: int
    last: int


def has_spans(tags: Iterable[str]) -> bool:
    """Whether a set of tags marks spans: every tag is `O` or a letter with a name, and not all tags are `O`."""
    marked = [tag for tag in tags if tag != OUTSIDE]
    return bool(marked) and all(tag[0] in LETTERS and tag[1:2] == "-" and len(tag) > 2 for tag in marked)


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Return the spans of one sentence, in order.

    >>> spans_of(["B-PER", "I-PER", "O", "I-LOC"])
    [Span(name='PER', first=0, last=1), Span(name='LOC', first=3, last=3)]
    """
    found: list[Span] = []
    name, first, closed = "", 0, True  # the open span; there is none while `closed` is true
    for i, tag in enumerate([*tags, OUTSIDE]):
        letter, _, own = tag.partition("-")
        goes_on = not closed and letter in ("I", "E") and own == name
        if not closed and not goes_on:
            found.append(Span(name, first, i - 1))
            closed = True
        if letter == OUTSIDE:
            continue
        if not goes_on:
            name, first, closed = own, i, False
        if letter in ("E", "S"):
            found.append(Span(name, first, i))
            closed = True
    return found


def span_f1(predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """Return the micro F1 over all spans of all sentences, 0 to 1; 0 when neither side has any span.

        F1 = 2 * right spans / (predicted spans + wanted spans)

    Raise ValueError without sentences, and for numbers of sentences or tags that do not match.
    """  # fmt: skip
    if len(predicted) != len(wanted) or not wanted:
        raise ValueError(f"{len(predicted)} predictions for {len(wanted)} sentences")
    right = said = there = 0
    for ours, gold in zip(predicted, wanted, strict=True):
        if len(ours) != len(gold):
            raise ValueError(f"{len(ours)} tags for {len(gold)} tokens")
        a, b = set(spans_of(ours)), set(spans_of(gold))
        right, said, there = right + len(a & b), said + len(a), there + len(b)
    return 2 * right / (said + there) if said + there else 0.0


def scores_of_classes(
    said: Sequence[tuple[str, ...]], gold: Sequence[tuple[str, ...]], labels: Sequence[str], *, multi_label: bool
) -> dict[str, float]:
    """Return the scores of classes by name. With one label per sample: accuracy, macro_f1 and matthews. With several:
    exact_match, macro_f1 (mean over `labels`) and micro_f1.
    """
    if not multi_label:
        ours, theirs = [one[0] for one in said], [one[0] for one in gold]
        return {measure.__name__: measure(ours, theirs) for measure in (accuracy, macro_f1, matthews)}
    each = [([label in one for one in said], [label in one for one in gold]) for label in labels]
    return {
        "exact_match": accuracy([frozenset(one) for one in said], [frozenset(one) for one in gold]),
        "macro_f1": sum(f1_binary(a, b, positive=True) for a, b in each) / len(labels),
        "micro_f1": f1_binary([x for a, _ in each for x in a], [x for _, b in each for x in b], positive=True),
    }


def scores_of_tags(
    said: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """Return accuracy over tokens and, if `labels` mark spans, span_f1."""
    scores = {"accuracy": accuracy([t for one in said for t in one], [t for one in gold for t in one])}
    if has_spans(labels):
        scores["span_f1"] = span_f1(said, gold)
    return scores


def scores_of_answers(said: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return exact_match and f1 as in SQuAD.

    Both are over characters, as for DRCD, for a question with Chinese characters in its right answers. For a question
    without an answer, only an empty prediction is right. If there are such questions, `no_answer_accuracy` is the
    accuracy on them alone.
    """
    pairs: list[tuple[float, float]] = []
    for ours, theirs in zip(said, gold, strict=True):
        chinese = any(is_cjk(character) for one in theirs for character in one)
        exact, f1 = (em_zh, f1_char_bag) if chinese else (exact_match, f1_squad)
        right = float(not ours)
        pairs.append((exact(ours, theirs), f1(ours, theirs)) if theirs else (right, right))
    nothing = [right for (right, _), theirs in zip(pairs, gold, strict=True) if not theirs]
    scores = {"exact_match": sum(one for one, _ in pairs) / len(pairs), "f1": sum(one for _, one in pairs) / len(pairs)}
    return {**scores, "no_answer_accuracy": sum(nothing) / len(nothing)} if nothing else scores
