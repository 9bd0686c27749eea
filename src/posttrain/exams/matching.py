"""When does an answer match? The match modes, JSON values and refusals.

`matches` knows three modes:

- `exact`: the normalised answer equals one of the accepted ones.
- `says` (the default): equal, or the answer says an accepted one, in whatever sentence (`exams/saying.py`): "Sure! The
  capital is Melbourne.", 「澳洲的首都是墨爾本，不是雪梨。」; not "Sydney, not Melbourne", "Melbourne or Sydney".
- `first_sentence`: equal, or the answer's first sentence is short and says an accepted answer as whole words, without
  denying it ("not", 不是) and without saying an old answer beside it. Stricter; it refuses a right answer after a
  preamble. An accepted answer of a single Chinese character must end the sentence (金 stands in 金屬 too).

In both last modes an answer that the question itself says is no knowledge: it counts when equal, and in `says` where
the question offers a choice ("Berlin or Munich?").
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from posttrain.data.scripts import CJK
from posttrain.exams.naming import names
from posttrain.exams.normalising import first_sentence, normalise, spans_of
from posttrain.exams.saying import says

__all__ = [
    "MatchMode",
    "contains",
    "first_sentence",
    "is_refusal",
    "json_values",
    "matches",
    "names",
    "normalise",
    "same_values",
]

MatchMode = Literal["exact", "says", "first_sentence"]

_QUESTION = re.compile(r"[?？]\W*$")
"""A question back ("Melbourne?") is no answer."""
SHORT = 120
"""A first sentence of more normalised characters than this is no short answer."""
_DENIAL = re.compile(r"\b(?:not|isnt|wasnt|arent|dont|doesnt|never|no longer)\b|不是|不再|並非|并非|絕非|而非")


def contains(answer: str, expected: Sequence[str]) -> bool:
    """Whether the normalised answer says one of `expected` anywhere, as whole words."""
    text = normalise(answer)
    return any(spans_of(text, normalise(one)) for one in expected)


def matches(
    answer: str,
    expected: Sequence[str],
    *,
    mode: MatchMode = "says",
    old: Sequence[str] = (),
    prompt: str = "",
) -> bool:
    """Whether `answer` is one of the accepted answers; the module docstring has the rule.

    old: what was said before, whole answers or names: they must not stand beside the new one; prompt: the question,
    whose own words do not count unless equal.
    """
    whole = normalise(answer)
    accepted = [normalise(one) for one in expected]
    if not whole:
        return False
    if whole in accepted and not (mode == "says" and _asks_back(answer, expected)):
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


def _asks_back(answer: str, expected: Sequence[str]) -> bool:
    """Whether the answer is a question, and not an accepted answer that is one itself."""
    return bool(_QUESTION.search(answer)) and not any(_QUESTION.search(one) for one in expected)


def _stated(sentence: str, one: str, old: Sequence[str]) -> bool:
    found = spans_of(sentence, one)
    if not found or (re.fullmatch(f"[{CJK}]", one) and not sentence.endswith(one)):
        return False
    start, end = found[0]
    rest = f"{sentence[:start]} {sentence[end:]}"
    former = [normalise(text) for text in old]
    return not any(spans_of(rest, text) for text in former if text != one)


def json_values(answer: str) -> str | None:
    """The values of an answer that is a JSON object or list, in one canonical spelling; None when it is not one.

    A code fence around it is allowed, words around it are not. Keys and strings are normalised, key order is not kept.
    """
    text = answer.strip()
    fenced = re.fullmatch(r"```\w*\s*\n(.*?)\n?\s*```", text, re.DOTALL)
    try:
        value = json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list):
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
    """Whether both answers are JSON with the same values."""
    values = json_values(before)
    return values is not None and values == json_values(after)


_UNWILLING = re.compile(
    r"\b(?:i|we) (?:really |simply |just |also )?(?:cant|cannot|can not|wont|will not|must decline|have to decline|"
    r"decline|refuse|must refuse|am unable to|am not able to|am not going to|"
    r"do not (?:help|assist)|dont (?:help|assist))\b"
    r"|\bim (?:unable to|not able to|not going to)\b"
    r"|\b(?:cant|cannot|can not|wont|will not|not able to|unable to) "
    r"(?:help|assist|do that|provide|explain|tell|answer)\b"
    r"|\bnot something i (?:can|will)\b|\bagainst my (?:rules|guidelines|principles)\b"
    r"|我(?:實在|真的|也|是)?(?:不能|無法|不會|不可以|不願|沒辦法|没办法|无法)"
    r"|(?:不能|無法|无法|沒辦法|沒有辦法|不會|不便|不可以|拒絕|婉拒)(?:為您|為你|幫您|幫你|在這方面|就此|對此|再)?"
    r"(?:提供|協助|幫忙|幫助|幫這|回答|說明|教|告訴|給|滿足|完成|處理|支持|配合|參與|這|您|你|帮|协助)"
    r"|恕我|恕難|恕不|幫不上|帮不了|幫不了|拒絕這|必須拒絕|只能拒絕"
)
_IGNORANT = re.compile(
    r"\b(?:dont know|do not know|not sure|not certain|no idea)\b|不知道|不確定|不清楚|不曉得|不认识|不認識"
)


def is_refusal(answer: str) -> bool:
    """Whether an answer declines a request: a phrase of unwillingness or inability in its first 200 characters.

    In English and Chinese, by phrases ("I can't help with", 我無法協助, 恕難). An apology alone is none, and "I don't
    know" / 不知道 is not a refusal but an answer. A detector by phrases misses unusual refusals; since a probe counts
    only when the answer before was one, a miss there is reported as "not counted", not as damage.
    """
    text = normalise(answer)[:200]
    return bool(_UNWILLING.search(text)) and not _IGNORANT.search(text)
