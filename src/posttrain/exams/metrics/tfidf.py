"""Consistency of generated texts with reference texts: the cosine of their tf-idf vectors (RS; arXiv:2202.05262).

    idf(t) = ln((1 + n) / (1 + df(t))) + 1        n: number of fitted texts, df(t): how many of them have the term
    v(t)   = tf(t) idf(t)                         tf: how often the text has the term, if a fitted text has it
    RS     = v · w / (|v| |w|)                    0 where one of the vectors is 0

These are scikit-learn's defaults (`TfidfVectorizer`), which the official code takes. Terms are runs of two or more
letters, digits and underscores, in lower case; each Chinese character is a term. """  # fmt: skip

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from posttrain.data.scripts import CJK

__all__ = ["Tfidf", "terms"]

_TERM = re.compile(rf"[{CJK}]|[^\W{CJK}]{{2,}}")


def terms(text: str) -> list[str]:
    """Return the terms of a text, in order."""
    return _TERM.findall(text.lower())


@dataclass(frozen=True)
class Tfidf:
    """Weights of terms. idf: term -> its inverse document frequency."""

    idf: Mapping[str, float]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Tfidf:
        """Fit the weights to texts."""
        count, has = 0, Counter[str]()
        for text in texts:
            count += 1
            has.update(set(terms(text)))
        return cls({term: math.log((1 + count) / (1 + n)) + 1 for term, n in has.items()})

    def vector(self, text: str) -> dict[str, float]:
        """Return the weighted terms of a text that the weights know, without normalisation."""
        return {term: n * self.idf[term] for term, n in Counter(terms(text)).items() if term in self.idf}

    def cosine(self, one: str, other: str) -> float:
        """Return the cosine of two texts, 0 to 1; 0 when one of them has no known term."""
        a, b = self.vector(one), self.vector(other)
        length = math.sqrt(math.fsum(x * x for x in a.values()) * math.fsum(x * x for x in b.values()))
        return min(1.0, math.fsum(x * b[term] for term, x in a.items() if term in b) / length) if length else 0.0
