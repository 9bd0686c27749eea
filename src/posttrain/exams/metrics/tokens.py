"""Cutting texts into the units that overlap metrics count, and the name of each way of cutting for signatures.

A score of overlap means nothing without the way its texts were cut: 今天天氣很好，我們去公園散步。 beside
今天天氣非常好，我們一起去公園散步吧。 has ROUGE-1 of 0.80 by characters, 0.78 by jieba's words and 0.75 by the words of
their Simplified forms. jieba's dictionary is Simplified, so it cuts Traditional text in other places than the same
sentence in Simplified; `jieba_simplified` cuts where jieba cuts the Simplified text, in the characters as written.
Every way drops punctuation and folds case, as rouge-score does.
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
    """Each Chinese or Japanese character; of other scripts, each run of letters and digits in lower case."""
    return _CHARACTERS.findall(text.lower())


def latin(text: str) -> list[str]:
    """Runs of a-z and 0-9 in lower case: rouge-score's own tokenizer without stemming. Chinese text has none."""
    return _LATIN.findall(text.lower())


def jieba_words(text: str) -> list[str]:
    """jieba's words (default dictionary, HMM for unknown words) that have a letter or digit, in lower case."""
    return [word for word in jieba_cut(text.lower()) if _is_word(word)]


def jieba_simplified(text: str) -> list[str]:
    """The text cut where jieba cuts its Simplified form, in its own characters.

    OpenCC's t2s keeps the number of characters nearly always; where it does not, the text is cut as it is.
    """
    lowered = text.lower()
    simplified = _to_simplified().convert(lowered)
    if len(simplified) != len(lowered):
        return jieba_words(text)
    ends = accumulate(map(len, jieba_cut(simplified)), initial=0)
    return [word for start, end in pairwise(ends) if _is_word(word := lowered[start:end])]


def _is_word(word: str) -> bool:
    return any(unicodedata.category(character)[0] in "LN" for character in word)


def jieba_cut(text: str, *, guess: bool = True) -> list[str]:
    """All of jieba's pieces in order, spaces and punctuation among them, from the default dictionary.

    guess: join characters that the dictionary does not know to words (jieba's hidden Markov model), as jieba does.
    A dictionary of its own: `jieba.add_word` elsewhere in the process changes no score.
    """
    return list(_jieba()[0].cut(text, HMM=guess))


def jieba_tags(text: str) -> list[tuple[str, str]]:
    """jieba's (piece, part of speech) in order: `nr`, `nrt` people, `ns` places, `nt` bodies, `nz` other names."""
    return [(pair.word, pair.flag) for pair in _tagger().cut(text)]


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n tokens."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def tokenizer_signature(tokenizer: Tokenizer) -> str:
    """`tok:char`, `tok:latin`, `tok:jieba-0.42.1,dict:1a2b3c4d`; of another function, its qualified name."""
    if tokenizer in (characters, latin):
        return "tok:char" if tokenizer is characters else "tok:latin"
    if tokenizer is jieba_words:
        return f"tok:{jieba_signature()}"
    if tokenizer is jieba_simplified:
        return f"tok:{jieba_signature()},cut:simplified,opencc:{version('opencc')}"
    return f"tok:{tokenizer.__module__}.{tokenizer.__qualname__}"


def jieba_signature() -> str:
    """jieba's version and the first 8 hex digits of the sha256 of its dictionary file."""
    _, version, digest = _jieba()
    return f"jieba-{version},dict:{digest}"


@cache
def _jieba() -> tuple[Any, str, str]:
    """A tokenizer with the default dictionary, jieba's version, the dictionary's hash."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns of pkg_resources and of its own string escapes
        import jieba
    jieba.setLogLevel(logging.WARNING)  # it would print how long loading took
    tokenizer = jieba.Tokenizer()
    with tokenizer.get_dict_file() as file:
        digest = hashlib.sha256(file.read()).hexdigest()[:8]
    return tokenizer, jieba.__version__, digest


def to_simplified(text: str) -> str:
    """The text in Simplified characters, by OpenCC's t2s, which reads no lone surrogates (of a broken JSON file)."""
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
