"""Decide whether an answer matches: the match modes and JSON values (refusals: `refusals.py`).

`matches` has three modes:

- `exact`: the normalised answer equals one of the accepted ones.
- `says` (the default): equal, or the answer says an accepted one in any sentence (`exams/saying.py`): "Sure! The
  capital is Melbourne.", 「澳洲的首都是墨爾本，不是雪梨。」; not "Sydney, not Melbourne", "Melbourne or Sydney".
- `first_sentence`: equal, or the answer's first sentence is short and says an accepted answer as whole words, without a
  denial ("not", 不是) and without an old answer in the same sentence. This mode is stricter; it rejects a right answer
  after a preamble. An accepted answer of a single Chinese character must end the sentence (金 is also part of 金屬).

In the last two modes an answer that the question itself contains shows no knowledge: it counts if it is equal, and in
`says` if the question offers a choice ("Berlin or Munich?").
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from posttrain.data.scripts import CJK
from posttrain.exams.normalising import first_sentence, json_in, normalise, spans_of
from posttrain.exams.saying import says

__all__ = ["MatchMode", "contains", "json_values", "matches", "same_values"]

MatchMode = Literal["exact", "says", "first_sentence"]

_QUESTION = re.compile(r"[?？]\W*$")
"""A question in return ("Melbourne?") is not an answer."""
SHORT = 120
"""The most normalised characters of a first sentence that counts as a short answer."""
_DENIAL = re.compile(r"\b(?:not|isnt|wasnt|arent|dont|doesnt|never|no longer)\b|不是|不再|並非|并非|絕非|而非")


def contains(answer: str, expected: Sequence[str]) -> bool:
    """Return whether the normalised answer says one of `expected` anywhere, as whole words."""
    text = normalise(answer)
    return any(spans_of(text, normalise(one)) for one in expected)


def matches(
    answer: str, expected: Sequence[str], *, mode: MatchMode = "says", old: Sequence[str] = (), prompt: str = ""
) -> bool:
    """Return whether `answer` is one of the accepted answers; the module docstring has the rule.

    old: earlier answers, whole ones or names, which must not be given together with the new one; prompt: the question;
    its own words do not count unless the answer is equal.
    """
    whole = normalise(answer)
    accepted = [normalise(one) for one in expected]
    if not whole:
        return False
    asks_back = bool(_QUESTION.search(answer)) and not any(_QUESTION.search(one) for one in expected)
    if whole in accepted and not (mode == "says" and asks_back):
        return True
    if mode == "exact":
        return False
    if mode == "says":
        return says(answer, expected, old=old, prompt=prompt)
    sentence = normalise(first_sentence(answer))
    if len(sentence) > SHORT or _DENIAL.search(sentence):
        return False
    asked = normalise(prompt)
    return any(_stated(sentence, one, old) for one in accepted if one and not spans_of(asked, one))


def _stated(sentence: str, one: str, old: Sequence[str]) -> bool:
    found = spans_of(sentence, one)
    if not found or (re.fullmatch(f"[{CJK}]", one) and not sentence.endswith(one)):
        return False
    start, end = found[0]
    rest = f"{sentence[:start]} {sentence[end:]}"
    former = [normalise(text) for text in old]
    return not any(spans_of(rest, text) for text in former if text != one)


def json_values(answer: str) -> str | None:
    """Return the values of an answer that is a JSON object or list, in one canonical form, or None. A code fence around
    it is allowed, other words around it are not. Keys and strings are normalised, key order is ignored.
    """
    value = json_in(answer, parse_constant=_refuse_constant)
    if value is None:
        return None
    return json.dumps(_normal_value(value), sort_keys=True, ensure_ascii=False)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _normal_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {normalise(key): _normal_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal_value(item) for item in value]
    return normalise(value) if isinstance(value, str) else value


def same_values(before: str, after: str) -> bool:
    """Return whether both answers are JSON with the same values."""
    values = json_values(before)
    return values is not None and values == json_values(after)
