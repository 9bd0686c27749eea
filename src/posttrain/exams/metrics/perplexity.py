"""Perplexity of text per token, word, character and byte, from one sum of log-probabilities.

    perplexity per unit = exp(-sum_nats / units)        at least 1, lower is better
    bits per byte       = -sum_nats / (bytes * ln 2)

sum_nats: ln p of the whole text or texts. Values per token can be compared only between models with the same tokenizer,
values per byte and per character between all models. For many texts, sum the nats and sum the units, then divide
(lm-eval's `weighted_perplexity`). Words are separated by whitespace and counted as lm-eval counts them. Chinese text
has hardly any whitespace: use characters or bytes there.
"""  # fmt: skip

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "Units",
    "bits_per_byte",
    "byte_perplexity",
    "char_perplexity",
    "cross_entropy",
    "token_perplexity",
    "units_of",
    "word_perplexity",
]


class Units(NamedTuple):
    """The length of a text in words, characters (code points) and UTF-8 bytes."""

    words: int
    characters: int
    bytes: int


def units_of(texts: str | Iterable[str]) -> Units:
    """Return the length of one text or several, summed; words are counted by `re.split(r"\\s+")`, as lm-eval does."""
    each = [texts] if isinstance(texts, str) else list(texts)
    return Units(
        sum(len(re.split(r"\s+", text)) for text in each), sum(map(len, each)), sum(len(text.encode()) for text in each)
    )


def cross_entropy(sum_nats: float, units: int) -> float:
    """Return nats per unit, -sum_nats / units: the logarithm of the perplexity. Raise ValueError without units."""
    if units <= 0:
        raise ValueError(f"no cross-entropy over {units} units")
    return -sum_nats / units


def _perplexity(sum_nats: float, units: int) -> float:
    """Return exp(nats per unit); inf for 709 nats per unit or more, which is close to the largest float."""
    nats = cross_entropy(sum_nats, units)
    return math.exp(nats) if nats < 709 else math.inf


token_perplexity = _perplexity
word_perplexity = _perplexity
char_perplexity = _perplexity
byte_perplexity = _perplexity
"""exp(nats per token, word, character or UTF-8 byte): the caller passes the number of these units."""


def bits_per_byte(sum_nats: float, bytes_: int) -> float:
    """Return bits per UTF-8 byte. Raise ValueError without bytes."""
    return cross_entropy(sum_nats, bytes_) / math.log(2)
