"""Exact match and F1 of reading comprehension, in English and Chinese: each 0 to 1, the best value over all references.

    F1 = 2 P R / (P + R),   P = h / length of the prediction,   R = h / length of the reference,   0 where h = 0

    exact_match, f1_squad   SQuAD 1.1 (arXiv 1606.05250): lower case, without ASCII punctuation and the articles a, an,
                            the; h: shared words, each as often as both texts have it
    em_zh, f1_char_bag      the usual scores for DRCD: NFKC, lower case, without punctuation and symbols; every Chinese
                            character is a unit, and every run of other letters and digits is one; h: shared units, each
                            as often as both texts have it
    f1_char_subsequence     the same units; h: the longest common subsequence (in order, gaps allowed)
    em_cmrc, f1_cmrc_lcs    CMRC 2018's script (arXiv 1810.07366): without its own list of marks; h: the longest common
                            *substring* (its function is called find_lcs, but allows no gap)

f1_char_bag is never below f1_char_subsequence. When the common text has a gap, f1_cmrc_lcs counts only its longest
part. An empty answer scores 0 in all of them.
"""  # fmt: skip

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence

from posttrain.data.metrics.lcs import bag_f1, f_measure, lcs_length, substring_length
from posttrain.data.scripts import CJK

__all__ = ["em_cmrc", "em_zh", "exact_match", "f1_char_bag", "f1_char_subsequence", "f1_cmrc_lcs", "f1_squad"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_ASCII_MARKS = str.maketrans("", "", string.punctuation)
_UNITS = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
"""A unit of the Chinese scores."""
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""The punctuation that CMRC's script removes. Its list also has '……', but these are two characters, which never equal a
single one, so the ellipsis stays in the text."""
_CMRC_UNITS = re.compile(r"[\u4e00-\u9fa5]|[^\W_\u4e00-\u9fa5]+(?:[.'’,][^\W_\u4e00-\u9fa5]+)*|\S")


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 when the texts, normalised by SQuAD 1.1's rule, are equal, else 0."""
    return _best(prediction, references, lambda a, b: float(_squad(a) == _squad(b)))


def f1_squad(prediction: str, references: Sequence[str]) -> float:
    """Return SQuAD 1.1's F1 over words as a multiset."""
    return _best(prediction, references, lambda a, b: bag_f1(_squad(a), _squad(b)))


def em_zh(prediction: str, references: Sequence[str]) -> float:
    """Return 1 when both texts have the same units in the same order, and at least one; else 0."""
    return _best(prediction, references, lambda a, b: float(bool(_units(a)) and _units(a) == _units(b)))


def f1_char_bag(prediction: str, references: Sequence[str]) -> float:
    """Return F1 over units as a multiset: their order does not count."""
    return _best(prediction, references, lambda a, b: bag_f1(_units(a), _units(b)))


def f1_char_subsequence(prediction: str, references: Sequence[str]) -> float:
    """Return F1 of the longest common subsequence of units: their order counts, gaps are allowed."""

    def one(a: str, b: str) -> float:
        ours, theirs = _units(a), _units(b)
        return f_measure(lcs_length(ours, theirs), len(theirs), len(ours))

    return _best(prediction, references, one)


def em_cmrc(prediction: str, references: Sequence[str]) -> float:
    """Return CMRC 2018's exact match: 1 when the texts are equal in lower case without the script's punctuation. There
    is no NFKC normalisation, and spaces count.
    """
    return _best(prediction, references, lambda a, b: float(_cmrc_text(a) == _cmrc_text(b)))


def f1_cmrc_lcs(prediction: str, references: Sequence[str]) -> float:
    """Return CMRC 2018's F1 of the longest common substring over units of its mixed segmentation.

    Characters U+4E00 to U+9FA5 are units. The script passes the rest to nltk's English tokenizer. Here a word with its
    inner points, commas and apostrophes is a unit, and any other mark is a unit. The results differ where nltk splits
    words (don't: do, n't) or keeps marks together (``, --, ...).
    """

    def one(a: str, b: str) -> float:
        ours, theirs = (_CMRC_UNITS.findall(_cmrc_text(text)) for text in (a, b))
        return f_measure(substring_length(theirs, ours), len(theirs), len(ours))

    return _best(prediction, references, one)


def _best(prediction: str, references: Sequence[str], score: Callable[[str, str], float]) -> float:
    """Return the best score over the references; 0 for a blank prediction or without references."""
    if not prediction.strip():
        return 0.0
    return max((score(prediction, one) for one in references), default=0.0)


def _squad(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_ASCII_MARKS)).split()


def _units(text: str) -> list[str]:
    return _UNITS.findall(unicodedata.normalize("NFKC", text).lower())


def _cmrc_text(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_MARKS)
