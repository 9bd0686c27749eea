"""ROUGE-1, -2, -L, -Lsum and -S with the semantics of rouge-score 0.1.2 and any tokenizer.

C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004. r is the number of units of the reference, p
that of the prediction, and h the number of units that they share:

    recall R = h / r,   precision P = h / p,   F = (1 + β²) R P / (R + β² P),   0 where h = 0

    rouge1, rouge2   units are n-grams; each counts as often as it occurs, shared min(r, p) times (section 2)
    rougeL           units are tokens; h is the length of the longest common subsequence of the two texts (3.1)
    rougeLsum        lines are sentences; h counts, per reference line, the union of its LCS with each line of the
                     prediction, no token more often than either text has it (3.2, and ROUGE-1.5.5's clipping)
    rougeS           units are skip-bigrams: ordered pairs of tokens with any gap, or at most `max_skip` tokens
                     between them; shared min(r, p) times (section 5). max_skip 0 is rouge2

β is the weight of recall and applies only to rougeL and rougeLsum; the others are the plain harmonic mean, as in
rouge-score. F is 0 to 1. ROUGE of Chinese depends on how the text is cut into tokens: `rouge_signature` records it.
"""  # fmt: skip

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from posttrain.data.metrics.lcs import bag_f1, f_measure, lcs_indices, lcs_length
from posttrain.exams.metrics.tokens import Tokenizer, characters, ngrams, tokenizer_signature

__all__ = ["Rouge", "rouge", "rouge_signature"]


class Rouge(NamedTuple):
    """The F of each kind of ROUGE, 0 to 1."""

    rouge1: float
    rouge2: float
    rougeL: float
    rougeLsum: float
    rougeS: float


def rouge(
    prediction: str,
    reference: str,
    *,
    tokenizer: Tokenizer = characters,
    beta: float = 1.0,
    max_skip: int | None = None,
) -> Rouge:
    """Return all five scores of one pair; an empty prediction or reference scores 0. See the module's docstring."""
    predicted, wanted = tokenizer(prediction), tokenizer(reference)
    length = lcs_length(wanted, predicted)
    return Rouge(
        bag_f1(predicted, wanted),
        bag_f1(ngrams(predicted, 2), ngrams(wanted, 2)),
        f_measure(length, len(wanted), len(predicted), beta),
        _by_lines(prediction, reference, tokenizer, beta),
        _skip_bigrams(predicted, wanted, max_skip),
    )


def rouge_signature(*, tokenizer: Tokenizer = characters, beta: float = 1.0, max_skip: int | None = None) -> str:
    """Return a signature, in the style of sacrebleu's, of everything that the scores depend on."""
    skip = "any" if max_skip is None else str(max_skip)
    return f"rouge:rouge-score-0.1.2|{tokenizer_signature(tokenizer)}|beta:{beta:g}|skip:{skip}"


def _by_lines(prediction: str, reference: str, tokenizer: Tokenizer, beta: float) -> float:
    """Return rougeLsum, 0 to 1."""
    ours, theirs = ([tokenizer(line) for line in text.split("\n") if line] for text in (prediction, reference))
    left_ours, left_theirs = (Counter(token for line in lines for token in line) for lines in (ours, theirs))
    wanted, predicted = left_theirs.total(), left_ours.total()
    shared = 0
    for line in theirs:
        union = sorted({i for other in ours for i in lcs_indices(line, other)})
        for token in (line[i] for i in union):
            if left_ours[token] and left_theirs[token]:
                left_ours[token] -= 1
                left_theirs[token] -= 1
                shared += 1
    return f_measure(shared, wanted, predicted, beta)


def _skip_bigrams(predicted: Sequence[str], wanted: Sequence[str], max_skip: int | None) -> float:
    """Return rougeS, 0 to 1."""
    if len(predicted) < 2 or len(wanted) < 2:
        return 0.0
    numbers = {token: i for i, token in enumerate(dict.fromkeys([*predicted, *wanted]))}
    (ours, our_counts), (theirs, their_counts) = (
        _pair_counts(np.array([numbers[token] for token in tokens]), len(numbers), max_skip)
        for tokens in (predicted, wanted)
    )
    _, i, j = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    shared = int(np.minimum(our_counts[i], their_counts[j]).sum())
    return f_measure(shared, int(their_counts.sum()), int(our_counts.sum()))


def _pair_counts(ids: np.ndarray, vocabulary: int, max_skip: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct skip-bigrams of token ids (N,), each as one number, and how often each occurs."""
    widest = len(ids) - 1 if max_skip is None else min(len(ids) - 1, max_skip + 1)
    pairs = [ids[:-gap] * vocabulary + ids[gap:] for gap in range(1, widest + 1)]
    values, counts = np.unique(np.concatenate(pairs), return_counts=True)
    return values, counts
