"""Scores of model editing: likelihoods of the new and the true object, tokens under teacher forcing, free answers.

Likelihoods are those of CounterFact (Meng et al. 2022, arXiv:2202.05262; memit's `eval_utils_counterfact.py` and
`summarize.py`). l(x) is the mean negative log-probability per token of an object after the prompt, in nats:

    success    = 1 where l(wanted) < l(other)
    magnitude  = exp(-l(wanted)) - exp(-l(other))

    ES, EM: of the prompt itself; PS, PM: of its paraphrases; the new object is wanted
    NS, NM: of prompts about neighbours; the true object is wanted
    S = harmonic mean of ES, PS and NS

Teacher forcing (zsRE, KnowEdit) asks for each token of the target after the prompt and the *right* tokens before it;
`token_accuracy` is the share of tokens that are then the likeliest, and `unchanged` the share of positions where two
models have the same likeliest token, right or wrong. A model that needs the right beginning to go on rightly has a high
token accuracy and says something else by itself (arXiv:2502.11177: 96.8 % against 38.5 %), so free answers are judged
as well. """  # fmt: skip

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.exams.normalising import first_sentence, normalise, spans_of

__all__ = [
    "Preference",
    "all_said",
    "answer_begins",
    "answer_is",
    "answer_says",
    "harmonic_mean",
    "preference",
    "said_line",
    "token_accuracy",
    "unchanged",
]


class Preference(NamedTuple):
    """How one object is preferred to another. success: 0 or 1; magnitude: -1 to 1."""

    success: float
    magnitude: float


def preference(wanted: float, other: float) -> Preference:
    """Return success and magnitude from the mean negative log-probabilities per token of two objects, in nats."""
    return Preference(float(wanted < other), math.exp(-wanted) - math.exp(-other))


def harmonic_mean(values: Sequence[float]) -> float:
    """Return n / (1/x1 + ... + 1/xn) of at least one value that is not negative; 0 if any value is 0."""
    if any(value < 0 for value in values):
        raise ValueError(f"a harmonic mean of negative values: {values}")
    return 0.0 if 0 in values else len(values) / math.fsum(1 / value for value in values)


def token_accuracy(hits: int, tokens: int) -> float:
    """Return the share of a target's tokens that are the likeliest after the right ones before them."""
    return hits / tokens


def unchanged(before: Sequence[int | str], after: Sequence[int | str]) -> float | None:
    """Return the share of positions with the same likeliest token in both models, whether it is right or not
    (EasyEdit's locality). None when there are no positions, or not equally many, as with two tokenizers.
    """
    if not before or len(before) != len(after):
        return None
    return sum(a == b for a, b in zip(before, after, strict=True)) / len(before)


# ---- free answers ----------------------------------------------------------------------------------------------------


def said_line(answer: str) -> str:
    """Return the first line of an answer that says something: a plain model goes on with other lines. Empty without
    one.
    """
    return next((line.strip() for line in answer.splitlines() if normalise(line)), "")


def answer_is(answer: str, accepted: Sequence[str]) -> bool:
    """Return whether the first line, or its first sentence, is an accepted answer (normalised, so that case, width,
    punctuation and a leading article do not count): exact match at a natural stop.
    """
    line = said_line(answer)
    said = {normalise(line), normalise(first_sentence(line))} - {""}
    return any(normalise(one) in said for one in accepted)


def answer_begins(answer: str, accepted: Sequence[str]) -> bool:
    """Return whether the first line begins with an accepted answer, as whole words."""
    line = normalise(said_line(answer))
    return any(span[0] == 0 for one in accepted for span in spans_of(line, normalise(one)))


def answer_says(answer: str, accepted: Sequence[str]) -> bool:
    """Return whether the first line has an accepted answer anywhere, as whole words, denied or not."""
    line = normalise(said_line(answer))
    return any(spans_of(line, normalise(one)) for one in accepted)


def all_said(answer: str, answers: Sequence[Sequence[str]]) -> bool:
    """Return whether a text has each of some answers, each by one of its aliases, letter by letter and anywhere
    (RippleEdits' official code: "no" is in "know").
    """
    return all(any(alias in answer for alias in aliases) for aliases in answers)
