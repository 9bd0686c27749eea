"""Spans of tagged tokens (such as names) and their F1, as CoNLL counts them: a span is right when its beginning, its
end and its name are right.

Tags are `O`, or a letter and a name (`B-PER`). Tags that no scheme allows are read by CoNLL's convention, which
conlleval and seqeval use by default: every maximal run is a span, so an `I-PER` after `O` or after another name begins
one. Letters: B begins, I continues, E ends, S is a span of one token (IOB1, IOB2, IOE2 and IOBES are all read).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Span", "has_spans", "span_f1", "spans_of"]

OUTSIDE = "O"
LETTERS = frozenset("BIES")


class Span(NamedTuple):
    """first, last: indices of its first and its last token."""

    name: str
    first: int
    last: int


def has_spans(tags: Iterable[str]) -> bool:
    """Whether a set of tags marks spans: every one is `O` or has one of the letters, and not all are `O`."""
    marked = [tag for tag in tags if tag != OUTSIDE]
    return bool(marked) and all(tag[0] in LETTERS and tag[1:2] == "-" and len(tag) > 2 for tag in marked)


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans of one sentence, in order.

    >>> spans_of(["B-PER", "I-PER", "O", "I-LOC"])
    [Span(name='PER', first=0, last=1), Span(name='LOC', first=3, last=3)]
    """
    found: list[Span] = []
    name, first, closed = "", 0, True  # the span that is open, unless closed
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
    """Micro F1 over all spans of all sentences, 0 to 1; 0 when neither side has any.

        F1 = 2 right / (spans said + spans there)
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
