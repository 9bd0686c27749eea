"""How surprised a model is by text, per token, word, character and byte, from one sum of log-probabilities.

    perplexity per unit = exp(-sum_nats / units)        at least 1, lower is better
    bits per byte       = -sum_nats / (bytes * ln 2)

sum_nats: ln p of the whole text(s). Per token compares only models of one tokenizer; per byte and per character any.
Over many texts, sum the nats and sum the units, then divide (lm-eval's `weighted_perplexity`). Words are what
whitespace separates, counted as lm-eval does; Chinese has hardly any, so read characters or bytes there.
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
    """How long a text is."""

    words: int
    characters: int
    bytes: int


def units_of(texts: str | Iterable[str]) -> Units:
    """Counts over one text or several: words as `re.split(r"\\s+")` counts them (lm-eval), code points, UTF-8 bytes."""
    each = [texts] if isinstance(texts, str) else list(texts)
    return Units(
        sum(len(re.split(r"\s+", text)) for text in each),
        sum(map(len, each)),
        sum(len(text.encode()) for text in each),
    )


def cross_entropy(sum_nats: float, units: int) -> float:
    """Nats per unit, -sum_nats / units: the logarithm of the perplexity."""
    if units <= 0:
        raise ValueError(f"no cross-entropy over {units} units")
    return -sum_nats / units


def _perplexity(sum_nats: float, units: int) -> float:
    """exp(nats per unit); inf where a float holds no more (above 709 nats per unit)."""
    nats = cross_entropy(sum_nats, units)
    return math.exp(nats) if nats < 709 else math.inf


token_perplexity = _perplexity
word_perplexity = _perplexity
char_perplexity = _perplexity
byte_perplexity = _perplexity
"""exp(nats per token, word, character, UTF-8 byte): the caller says what is counted."""


def bits_per_byte(sum_nats: float, bytes_: int) -> float:
    """Bits per UTF-8 byte."""
    return cross_entropy(sum_nats, bytes_) / math.log(2)
