"""The scores of the ChatGLM fine-tuning scripts, equal to the last digit, but without their crash on an empty answer.

ChatGLM-6B and ChatGLM2-6B (`ptuning/main.py`) and ChatGLM3 (`finetune_hf.py`) cut prediction and label with jieba,
join the pieces with spaces and pass both to rouge_chinese 1.0.3 (`Rouge().get_scores`):

    words: the pieces between spaces of all sentences, in order; a sentence that has only spaces is one empty word
    rouge-n: P, R of the sets of n-grams (repeats count once);  rouge-l: P, R of the longest common subsequence
    F = 2 P R / (P + R + 1e-8)

BLEU-4 is nltk 3's `sentence_bleu` with `SmoothingFunction().method3`. Among p_1..p_4 (clipped; denominators at least 1)
the j-th value that is 0 becomes 1 / (2^j * denominator). The result is multiplied by exp(1 - r/c) when the prediction
(length c) is not longer than the label (length r). It is 0 when no unit is shared. The first two scripts use characters
as units, ChatGLM3's script uses jieba's pieces.

    rouge_jieba-1, -2, -l, bleu4_char    rounded to 4 decimals per pair, as the scripts do before they average
    bleu4_jieba                          not rounded; ChatGLM3's script gives 0 to 1, here it is multiplied by 100

All scores are 0 to 100; the score of a corpus is their plain mean. An empty answer or label scores 0; the scripts raise
`ValueError: Hypothesis is empty.` The scores never equal rouge-score's ROUGE, so they have other names. jieba's
dictionary is in Simplified characters: on Traditional text the scores depend on how jieba happens to cut it.
"""  # fmt: skip

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from posttrain.data.metrics.lcs import lcs_length
from posttrain.exams.metrics.tokens import jieba_cut, jieba_signature, ngrams

__all__ = ["CHATGLM_SCORES", "chatglm_scores", "chatglm_signature"]

CHATGLM_SCORES = ("rouge_jieba-1", "rouge_jieba-2", "rouge_jieba-l", "bleu4_char", "bleu4_jieba")
_SENTENCE_END = re.compile(r"([。！？?]|\.{6})([^”’])")
"""The end of a sentence (group 1) in text with spaces between its pieces: rouge_chinese begins the next sentence before
group 2."""


def chatglm_scores(prediction: str, reference: str) -> dict[str, float]:
    """Return the five scores of one pair, each 0 to 100; the module's docstring has the formulas."""
    if not prediction.strip() or not reference.strip():
        return dict.fromkeys(CHATGLM_SCORES, 0.0)
    pieces, wanted = jieba_cut(prediction), jieba_cut(reference)
    words, wanted_words = _words(pieces), _words(wanted)
    return {
        "rouge_jieba-1": _rouge_n(words, wanted_words, 1),
        "rouge_jieba-2": _rouge_n(words, wanted_words, 2),
        "rouge_jieba-l": _rouge_f(lcs_length(wanted_words, words), len(words), len(wanted_words)),
        "bleu4_char": round(100 * _bleu4(list(prediction), list(reference)), 4),
        "bleu4_jieba": 100 * _bleu4(pieces, wanted),
    }


def chatglm_signature() -> str:
    """Return a signature, in the style of sacrebleu's, of everything that the scores depend on."""
    return f"chatglm:ptuning+v3|rouge:rouge_chinese-1.0.3,sets|bleu:nltk-method3|tok:{jieba_signature()}|empty:0"


def _words(pieces: Sequence[str]) -> list[str]:
    """Return jieba's pieces as the words that rouge_chinese sees (see the module's docstring)."""
    text = _SENTENCE_END.sub(r"\1\n\2", " ".join(pieces)).rstrip()
    return [word for sentence in text.split("\n") if sentence for word in sentence.split() or [""]]


def _rouge_n(words: Sequence[str], wanted: Sequence[str], n: int) -> float:
    ours, theirs = (set(ngrams(tokens, n)) for tokens in (words, wanted))
    return _rouge_f(len(ours & theirs), len(ours), len(theirs))


def _rouge_f(shared: int, predicted: int, wanted: int) -> float:
    precision = shared / predicted if predicted else 0.0
    recall = shared / wanted if wanted else 0.0
    return round(100 * (2.0 * ((precision * recall) / (precision + recall + 1e-8))), 4)


def _bleu4(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return BLEU-4, 0 to 1. The operations are in nltk's order, because the last digit depends on it."""
    logs: list[float] = []
    misses = 0
    for n in range(1, 5):
        ours, theirs = (Counter(ngrams(tokens, n)) for tokens in (prediction, reference))
        shared = (ours & theirs).total()
        total = max(1, ours.total())
        if not shared:
            if n == 1:
                return 0.0
            misses += 1
        logs.append(0.25 * math.log(shared / total if shared else 1 / (2**misses * total)))
    longer = len(prediction) > len(reference)
    return (1.0 if longer else math.exp(1 - len(reference) / len(prediction))) * math.exp(math.fsum(logs))
