"""Cut texts into the units that overlap metrics count, and name each way of cutting for signatures.

A score of overlap has a meaning only together with the way in which the texts were cut. ROUGE-1 of
今天天氣很好，我們去公園散步。 against 今天天氣非常好，我們一起去公園散步吧。 is 0.80 by characters, 0.78 by jieba's
words and 0.75 by the words of their Simplified forms. jieba's dictionary is in Simplified characters, so it cuts a
Traditional text differently from the same text in Simplified. `jieba_simplified` cuts where jieba cuts the Simplified
text, and keeps the characters as written. Every tokenizer here removes punctuation and ignores case, as rouge-score
does.
"""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from itertools import accumulate, pairwise
from typing import Any

from posttrain.data.scripts import CJK

__all__ = [
    "Tokenizer",
    "characters",
    "jieba_cut",
    "jieba_simplified",
    "jieba_tags",
    "jieba_words",
    "latin",
    "ngrams",
    "to_simplified",
    "tokenizer_signature",
]

Tokenizer = Callable[[str], list[str]]

_LATIN = re.compile(r"[a-z0-9]+")
_CHARACTERS = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


def characters(text: str) -> list[str]:
    """Return each Chinese or Japanese character, and of other scripts each run of letters and digits in lower case."""
    return _CHARACTERS.findall(text.lower())


def latin(text: str) -> list[str]:
    """Return runs of a-z and 0-9 in lower case: rouge-score's own tokenizer without stemming. Chinese text has none."""
    return _LATIN.findall(text.lower())


def jieba_words(text: str) -> list[str]:
    """Return jieba's words (default dictionary, HMM for unknown words) with a letter or digit, in lower case."""
    return [word for word in jieba_cut(text.lower()) if _is_word(word)]


def jieba_simplified(text: str) -> list[str]:
    """Return the words of a text, cut where jieba cuts its Simplified form, in the text's own characters. OpenCC's t2s
    nearly always keeps the number of characters. When it does not, the text itself is cut.
    """
    lowered = text.lower()
    simplified = _to_simplified().convert(lowered)
    if len(simplified) != len(lowered):
        return jieba_words(text)
    ends = accumulate(map(len, jieba_cut(simplified)), initial=0)
    return [word for start, end in pairwise(ends) if _is_word(word := lowered[start:end])]


def _is_word(word: str) -> bool:
    """Whether a piece has a letter or a digit."""
    return any(unicodedata.category(character)[0] in "LN" for character in word)


def jieba_cut(text: str, *, guess: bool = True) -> list[str]:
    """Return all of jieba's pieces in order, with spaces and punctuation, from the default dictionary.

    guess: use jieba's hidden Markov model, as jieba does by default, to join characters that the dictionary does not
    know into words. The dictionary is a separate copy: `jieba.add_word` elsewhere in the process changes no score.
    """
    return list(_jieba()[0].cut(text, HMM=guess))


def jieba_tags(text: str) -> list[tuple[str, str]]:
    """Return (piece, part of speech) by jieba, in order. Names have the parts of speech `nr`, `nrt` (people), `ns`
    (geographic names), `nt` (organisations) and `nz` (other).
    """
    return [(pair.word, pair.flag) for pair in _tagger().cut(text)]


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return every run of n tokens, in order."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def tokenizer_signature(tokenizer: Tokenizer) -> str:
    """Return the signature of a tokenizer, such as `tok:char`, `tok:latin` or `tok:jieba-0.42.1,dict:1a2b3c4d`. For a
    function that is not of this module it is the function's qualified name.
    """
    if tokenizer in (characters, latin):
        return "tok:char" if tokenizer is characters else "tok:latin"
    if tokenizer is jieba_words:
        return f"tok:{jieba_signature()}"
    if tokenizer is jieba_simplified:
        return f"tok:{jieba_signature()},cut:simplified,opencc:{version('opencc')}"
    return f"tok:{tokenizer.__module__}.{tokenizer.__qualname__}"


def jieba_signature() -> str:
    """Return jieba's version and the first 8 hex digits of the SHA-256 of its dictionary file."""
    _, version, digest = _jieba()
    return f"jieba-{version},dict:{digest}"


@cache
def _jieba() -> tuple[Any, str, str]:
    """Return a tokenizer with the default dictionary, jieba's version, and the hash of the dictionary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import warns about pkg_resources and jieba's string escapes
        import jieba
    jieba.setLogLevel(logging.WARNING)  # otherwise it prints how long the loading took
    tokenizer = jieba.Tokenizer()
    with tokenizer.get_dict_file() as file:
        digest = hashlib.sha256(file.read()).hexdigest()[:8]
    return tokenizer, jieba.__version__, digest


def to_simplified(text: str) -> str:
    """Return the text in Simplified characters, by OpenCC's t2s. Lone surrogates (from a broken JSON file) become `?`,
    because OpenCC cannot read them.
    """
    return str(_to_simplified().convert(text.encode("utf-8", "replace").decode()))


@cache
def _tagger() -> Any:
    tokenizer = _jieba()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba.posseg
    return jieba.posseg.POSTokenizer(tokenizer)


@cache
def _to_simplified() -> Any:
    import opencc

    return opencc.OpenCC("t2s")
