"""Fluency of generated texts: the weighted entropy of their n-grams (GE; Zhang et al. 2018, arXiv:1809.05972).

    H_n = -sum over n-grams g of f(g) log2 f(g)        f: the share of g among the text's n-grams
    GE  = (2/3 H_2 + 4/3 H_3) / 2                      in bits; papers on editing print 100 times as much

As in rome's code: the weights are 2/3 and 4/3, and the mean of the two weighted entropies is taken. A text that repeats
itself has a low GE. Its height depends on the length of the texts and on how they are drawn, so only texts drawn alike
compare. The official code cuts texts with nltk's `word_tokenize`; `words` follows the same rules for English, but for
abbreviations at a sentence's end, and takes each Chinese character as a word.
"""  # fmt: skip

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from posttrain.data.scripts import CJK
from posttrain.exams.metrics.tokens import ngrams

__all__ = ["ngram_entropy", "words"]

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""n -> the weight of H_n."""
_MARKS = r";@#$%&?!*()\[\]{}<>\"“”«»„‘’、。，；：？！「」『』（）《》〈〉…"
_PIECE = re.compile(rf"[{CJK}]|\.{{2,}}|--|[{_MARKS}]|[:,](?!\d)|(?:(?!\.{{2,}}|--)[^\s{CJK}{_MARKS}:,]|[:,](?=\d))+")
"""Matches a Chinese character, a mark, or a run of other characters. A comma or a colon before a digit belongs to a
run."""
_TITLES = "Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Lt|Sgt|Rev|Jr|Sr|Mt|No|vs"
_CLOSED = re.compile(rf"(?!(?:{_TITLES})\.$)(?:[^.]{{2,}}|[^A-Za-z.])\.$")
"""Matches a word with a full stop that may end a sentence within a text."""
_CONTRACTION = re.compile(r"(?i)^(?P<word>.+?)(?P<rest>n't|'(?:s|m|d|ll|re|ve)|'|(?<=^can)not)$")


def words(text: str) -> list[str]:
    """Return the words and marks of a text. Contractions are cut (do n't, it 's), and so is the full stop of a
    sentence; numbers (1,000.5), and words with inner points or hyphens (U.S., well-known) stay whole.
    """
    found: list[str] = []
    for piece in _PIECE.finditer(text):
        word, stop = piece[0], piece[0].endswith(".") and len(piece[0]) > 1 and _ends(piece[0], text[piece.end() :])
        word = word[:-1] if stop else word
        cut = _CONTRACTION.match(word)
        found += [cut["word"], cut["rest"]] if cut else [word]
        found += ["."] if stop else []
    return found


def _ends(word: str, rest: str) -> bool:
    """Whether the full stop of a word ends a sentence: the text ends, or the next word has no small letter in front and
    the word is no title, initial or abbreviation with inner points."""
    rest = rest.lstrip("\"”’')]}»")
    if not rest.strip():
        return not word.endswith("..")
    return rest[0].isspace() and not rest.lstrip()[0].islower() and _CLOSED.match(word) is not None


def entropy_bits(counts: Sequence[int]) -> float:
    """Return the entropy of a distribution given by counts, in bits."""
    total = sum(counts)
    return -math.fsum(n / total * math.log2(n / total) for n in counts) if total else 0.0


def ngram_entropy(tokens: Sequence[str]) -> float:
    """Return GE of a text's tokens in bits; 0 for fewer than two tokens, and for a text that repeats one token."""
    weighted = [weight * entropy_bits([*Counter(ngrams(tokens, n)).values()]) for n, weight in WEIGHTS.items()]
    return max(0.0, sum(weighted) / len(weighted))
