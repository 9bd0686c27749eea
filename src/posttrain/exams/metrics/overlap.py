"""BLEU by sacrebleu (Post 2018, arXiv 1804.08771; Papineni et al. 2002), with its signature.

    BLEU = min(1, exp(1 - r / c)) * exp(mean over n = 1..4 of ln p_n)        0 to 100

p_n: clipped n-gram precision over all predictions; c and r: total lengths of the predictions and of the closest
references. Orders n without any match are smoothed by halving (`smooth:exp`). Tokenizers: `zh` (separates Chinese
characters and treats the rest as 13a does), `char`, `13a` (leaves a Chinese sentence in one piece, so it is of no use
for Chinese), `intl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

__all__ = ["Bleu", "BleuTokenizer", "bleu", "bleu_signature", "sentence_bleu"]

BleuTokenizer = Literal["zh", "char", "13a", "intl"]


class Bleu(NamedTuple):
    """A BLEU score. score: 0 to 100; signature: sacrebleu's signature, which includes its version."""

    score: float
    signature: str


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: BleuTokenizer = "zh") -> Bleu:
    """Return corpus BLEU; `references[i]` are the accepted texts of `predictions[i]`, each with at least one non-empty.

    An empty prediction adds no matches, and its missing length lowers the score. If all predictions are empty, the
    score is 0. Raise ValueError without predictions, without a non-empty reference, or for lists of different lengths.
    """
    if not predictions:
        raise ValueError("BLEU of no predictions")
    wanted = [_non_empty(one) for one in references]
    if len(wanted) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions, references for {len(wanted)}")
    most = max(map(len, wanted))
    streams = [[one[i] if i < len(one) else None for one in wanted] for i in range(most)]
    metric = _metric(tokenize, sentence=False)
    score = metric.corpus_score(list(predictions), streams).score
    return Bleu(float(score), str(metric.get_signature()))


def sentence_bleu(prediction: str, references: Sequence[str], *, tokenize: BleuTokenizer = "zh") -> Bleu:
    """Return BLEU of one text with effective order: only those n count for which the prediction has n-grams. Raise
    ValueError when there is no non-empty reference.
    """
    metric = _metric(tokenize, sentence=True)
    score = metric.sentence_score(prediction, _non_empty(references)).score
    return Bleu(float(score), str(metric.get_signature()))


def bleu_signature(*, tokenize: BleuTokenizer = "zh", sentence: bool = False) -> str:
    """Return what the scores depend on, before any score exists; the number of references is left out."""
    import sacrebleu

    return f"case:mixed|eff:{'yes' if sentence else 'no'}|tok:{tokenize}|smooth:exp|version:{sacrebleu.__version__}"


def _non_empty(references: Sequence[str]) -> list[str]:
    """Return the references that are not blank. Raise ValueError when there are none."""
    found = [one for one in references if one.strip()]
    if not found:
        raise ValueError("BLEU against no reference")
    return found


@cache
def _metric(tokenize: str, *, sentence: bool) -> Any:
    from sacrebleu.metrics import BLEU

    # force: no warning about texts that look tokenised already; the scores are the same
    return BLEU(tokenize=tokenize, smooth_method="exp", effective_order=sentence, force=True)
