"""Is an answer still given in the same manner? Its length, tone, format, language, and whether it runs in circles.

What is said is `kept.py`'s; this is how. Everything is read off the text by rules, and each part is 0 to 1:

    length    1 while the longer answer has at most FACTOR times the words of the shorter one, then FACTOR / ratio
    tone      the overlap of the marks of tone (Jaccard): voice (arr, matey, 喵), cheer (two ! or more), chat (啦, 喔),
              emoji, apology; 1 where both have none
    format    the same of the marks of Markdown (`behaviour.formatting`) and JSON
    language  1 for the same language and, of Chinese, the same script; 0 else; 1 where one has no letters or is code
    flow      0 where just one of both repeats itself over and over, as broken models do; 1 else

The score is their mean; `same` is True when no part is below `ENOUGH`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from posttrain.exams.behaviour import formatting, language_of, length, script_of
from posttrain.exams.matching import json_values, normalise

__all__ = ["FACTOR", "Manner", "manner"]

FACTOR = 2.5
"""Answers up to so many times longer or shorter are of one class of length."""
TELLING = 8
"""Latin words below which English and `other` are not told apart."""
ENOUGH = 0.99
LOOP = 4
"""A run of three words that occurs so often, or more, and makes up a third of the answer is a loop."""
TONES = {
    "voice": re.compile(
        r"\b(?:arr+|yarr|aye|ahoy|matey?s?|avast|yo ho|ye|yer|thou|thee|thy|hath|meow|nya)\b|喵|汪汪|本大[爺爷]|老夫",
        re.I,
    ),
    "cheer": re.compile(r"[!！][\s\S]*[!！]"),
    "chat": re.compile("[啦喔唷咧囉啊耶欸吼啰哟](?=[。！？!?～~，\\s]|$)|[～~]|哈哈|\\b(?:haha|lol|hey|wow)\\b", re.I),
    "sorry": re.compile(r"\b(?:sorry|apologi[sz]e|unfortunately)\b|抱歉|對不起|对不起|不好意思", re.I),
}


@dataclass(frozen=True)
class Manner:
    """Each part and the score, 0 to 1; the module's docstring says what they are."""

    score: float
    length: float
    tone: float
    format: float
    language: float
    flow: float

    @property
    def same(self) -> bool:
        """No part changed."""
        return min(self.length, self.tone, self.format, self.language, self.flow) >= ENOUGH


def manner(prompt: str, before: str, after: str) -> Manner:
    """Compare how two answers to one prompt are given.

    prompt: an answer that says nothing but what the prompt says (a name, a quotation) tells no language of its own.
    """
    words = [max(1, length(text)) for text in (before, after)]
    ratio = max(words) / min(words)
    parts = (
        1.0 if ratio <= FACTOR else FACTOR / ratio,
        _jaccard(_tones(before), _tones(after)),
        _jaccard(_formats(before), _formats(after)),
        _language(prompt, before, after),
        float(_loops(before) == _loops(after)),
    )
    return Manner(sum(parts) / len(parts), *parts)


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def _tones(text: str) -> set[str]:
    return {name for name, pattern in TONES.items() if pattern.search(text)} | (
        {"emoji"} if formatting(text)["emoji"] else set()
    )


def _formats(text: str) -> set[str]:
    used = {name for name, marked in formatting(text).items() if marked and name != "emoji"}
    return used | ({"json"} if json_values(text) is not None else set())


def _language(prompt: str, before: str, after: str) -> float:
    if normalise(before) in normalise(prompt) or normalise(after) in normalise(prompt):
        return 1.0
    was, now = language_of(before), language_of(after)
    if "none" in (was, now) or formatting(before)["code"] or formatting(after)["code"]:
        return 1.0
    if was != now:
        latin = {was, now} == {"en", "other"}
        return float(latin and min(length(before), length(after)) < TELLING)
    scripts = {script_of(before), script_of(after)} - {"either", "none"}
    return float(len(scripts) < 2)


def _loops(text: str) -> bool:
    """Whether a run of three words makes up a third of the answer."""
    said = re.findall(r"[㐀-鿿]|\w+", text.casefold())
    runs = Counter(zip(said, said[1:], said[2:], strict=False))
    if not runs:
        return False
    often = max(runs.values())
    return often >= LOOP and often * 9 >= len(said)
