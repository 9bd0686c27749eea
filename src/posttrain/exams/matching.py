"""When does an answer match? Normalisation, the match rules and JSON values (refusals: `refusals.py`).

`normalise` removes what does not change an answer: width and composition (NFKC), case, punctuation, spaces beside
Chinese characters, a leading English article, and the two ways to write 台/臺. What changes a number stays: the minus
before it, the point within it.

`matches` knows two modes:

- `exact`: the normalised answer equals one of the accepted ones.
- `first_sentence` (the default): equal, or the answer's first sentence is short and says an accepted answer as whole
  words, without denying it ("not", 不是) and without saying an old answer beside it. For chat models, which answer
  "法國的首都是巴黎。" where the change file says 巴黎. Three strict sides: an answer that the question itself says
  counts only when equal (an echo is no knowledge); an accepted answer of a single Chinese character must end
  the sentence (金 stands in 金屬 too); a list of candidates that holds an old answer does not count.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from posttrain.data.scripts import CJK
from posttrain.exams.refusals import is_refusal

__all__ = [
    "MatchMode",
    "contains",
    "first_sentence",
    "is_refusal",
    "json_values",
    "matches",
    "normalise",
    "same_values",
]

MatchMode = Literal["exact", "first_sentence"]

SHORT = 120
"""A first sentence of more normalised characters than this is no short answer."""
VARIANTS = str.maketrans({"臺": "台", "裏": "裡", "峯": "峰"})
_SPACE_BESIDE_CJK = re.compile(rf"(?<=[{CJK}]) +| +(?=[{CJK}])")
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")
_DENIAL = re.compile(r"\b(?:not|isnt|wasnt|arent|dont|doesnt|never|no longer)\b|不是|不再|並非|并非|絕非|而非")
_SENTENCE_END = re.compile(r"[。！？!?\n]+|(?<=\w{3})\.(?=\s|$)|(?<=[^\x00-\x7f])\.(?=\s|$)")


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """The text without what does not change an answer; applying it twice changes nothing more."""
    for _ in range(16):  # removing one thing can bring another to light: "the, a cat"
        cleaned = _normalise_once(text)
        if cleaned == text:
            break
        text = cleaned
    return text


def _normalise_once(text: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(VARIANTS)
    kept = []
    for i, character in enumerate(text):
        category = unicodedata.category(character)
        before, after = text[i - 1 : i], text[i + 1 : i + 2]
        if character in "-−" and after.isdecimal() and not before.isalnum():
            kept.append("-")
        elif character == "." and before.isdecimal() and after.isdecimal():
            kept.append(".")
        elif character in ".,'’·" or category in ("Cf", "Sk", "So", "Cs", "Co", "Cn"):
            continue
        elif category[0] in "PZ" or category == "Cc":
            kept.append(" ")
        else:
            kept.append(character)
    joined = " ".join("".join(kept).split())
    return _ARTICLE.sub("", _SPACE_BESIDE_CJK.sub("", joined))


def _says(text: str, words: str) -> re.Match[str] | None:
    """Where normalised `text` has `words` as whole words (a Chinese character is its own word)."""
    if not words:
        return None
    word = rf"[^\W{CJK}]"
    left = rf"(?<!{word})" if re.match(word, words) else ""
    right = rf"(?!{word})" if re.match(word, words[-1]) else ""
    return re.search(left + re.escape(words) + right, text)


def first_sentence(text: str) -> str:
    """Up to the first sentence end: 。！？ ! ? a line break, or a full stop after a word of three letters or more."""
    for sentence in _SENTENCE_END.split(text):
        if normalise(sentence):
            return sentence.strip()
    return ""


def contains(answer: str, expected: Sequence[str]) -> bool:
    """Whether the normalised answer says one of `expected` anywhere, as whole words."""
    text = normalise(answer)
    return any(_says(text, normalise(one)) for one in expected)


def matches(
    answer: str,
    expected: Sequence[str],
    *,
    mode: MatchMode = "first_sentence",
    old: Sequence[str] = (),
    prompt: str = "",
) -> bool:
    """Whether `answer` is one of the accepted answers; the module docstring has the rule.

    old: answers that must not stand beside it; prompt: the question, whose own words do not count unless equal.
    """
    whole = normalise(answer)
    accepted = [normalise(one) for one in expected]
    if not whole:
        return False
    if whole in accepted:
        return True
    if mode == "exact":
        return False
    sentence = normalise(first_sentence(answer))
    if len(sentence) > SHORT or _DENIAL.search(sentence):
        return False
    asked = normalise(prompt)
    return any(_stated(sentence, one, old) for one in accepted if one and not _says(asked, one))


def _stated(sentence: str, one: str, old: Sequence[str]) -> bool:
    found = _says(sentence, one)
    if found is None or (re.fullmatch(f"[{CJK}]", one) and not sentence.endswith(one)):
        return False
    rest = f"{sentence[: found.start()]} {sentence[found.end() :]}"
    former = [normalise(text) for text in old]
    return not any(_says(rest, text) for text in former if text != one)


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
