"""BLEU by sacrebleu (Post 2018, arXiv 1804.08771; Papineni et al. 2002), with its signature.

    BLEU = min(1, exp(1 - r / c)) * exp(mean over n = 1..4 of ln p_n)        0 to 100

p_n: clipped n-gram precision over all predictions, c and r: lengths of predictions and of the closest references.
Orders without any match are smoothed by halving (`smooth:exp`). Tokenizers: `zh` (Chinese characters apart, the rest
as 13a), `char`, `13a` (leaves a Chinese sentence in one piece: of no use there), `intl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

__all__ = ["Bleu", "BleuTokenizer", "bleu", "bleu_signature", "sentence_bleu"]

BleuTokenizer = Literal["zh", "char", "13a", "intl"]


class Bleu(NamedTuple):
    """score: 0 to 100; signature: sacrebleu's, its version included."""

    score: float
    signature: str


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: BleuTokenizer = "zh") -> Bleu:
    """Corpus BLEU; `references[i]` are the accepted texts of `predictions[i]`, at least one non-empty each.

    An empty prediction adds nothing and counts with its missing length; nothing but empty ones score 0.
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
    """BLEU of one text with effective order: n stops where the prediction has no n-grams left."""
    metric = _metric(tokenize, sentence=True)
    score = metric.sentence_score(prediction, _non_empty(references)).score
    return Bleu(float(score), str(metric.get_signature()))


def bleu_signature(*, tokenize: BleuTokenizer = "zh", sentence: bool = False) -> str:
    """What the scores depend on, before there are any; the number of references is not known yet."""
    import sacrebleu

    return f"case:mixed|eff:{'yes' if sentence else 'no'}|tok:{tokenize}|smooth:exp|version:{sacrebleu.__version__}"


def _non_empty(references: Sequence[str]) -> list[str]:
    found = [one for one in references if one.strip()]
    if not found:
        raise ValueError("BLEU against no reference")
    return found


@cache
def _metric(tokenize: str, *, sentence: bool) -> Any:
    from sacrebleu.metrics import BLEU

    # force: says nothing about texts that look tokenised already; scores are the same
    return BLEU(tokenize=tokenize, smooth_method="exp", effective_order=sentence, force=True)
