"""How an answer is given, not what it says: its length, tone, formatting, language and script. Found by rules.

`behaviour` has CapTrack's WILL columns (arXiv:2603.06610): habits that fine-tuning changes although nobody asked for
it. `manner` compares the manner of two answers (`kept.py` compares their content). Each part is 0 to 1:

    length    1 while the longer answer has at most FACTOR times the words of the shorter one, then FACTOR / ratio
    tone      the overlap of the marks of tone (Jaccard): voice (arr, matey, 喵), cheer (two ! or more), chat (啦, 喔),
              emoji, apology; 1 where both have none
    format    the same for the marks of Markdown (`formatting`) and JSON
    language  1 for the same language and, for Chinese, the same script; 1 where one has no letters or is code; else 0
    flow      0 where only one of the two repeats itself over and over, as broken models do; else 1

The score is their mean; `same` is True when no part is below `ENOUGH`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from posttrain.data.scripts import CJK
from posttrain.exams.matching import json_values
from posttrain.exams.normalising import normalise
from posttrain.exams.score_spec import specs

__all__ = [
    "CAPABILITIES",
    "SPECS",
    "Manner",
    "behaviour",
    "formatting",
    "language_of",
    "length",
    "manner",
    "mostly_chinese",
    "script_of",
]

Language = Literal["zh", "en", "ja", "ko", "th", "ar", "he", "ru", "el", "hi", "bn", "other", "none"]

_WORDS = re.compile(rf"[{CJK}]|[^\W_{CJK}]+(?:['’-][^\W_{CJK}]+)*")
_BULLET = re.compile(r"^[^\S\n]*(?:[-*+•‧・]|\d{1,3}[.)、]|[（(]\d{1,3}[)）])\s+\S", re.MULTILINE)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+\S", re.MULTILINE)
_TABLE = re.compile(r"^[^\S\n]*\|.*\|[^\S\n]*\n[^\S\n]*\|[\s:|-]+\|", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|(?<!\*)\*[^*\s][^*\n]*\*(?!\*)|__[^_\n]+__")
_CODE = re.compile(r"```|`[^`\n]+`")
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\U0001f1e6-\U0001f1ff]")
FORMATS = {"bullets": _BULLET, "headings": _HEADING, "table": _TABLE, "bold": _BOLD, "code": _CODE, "emoji": _EMOJI}

_SCRIPTS: tuple[tuple[Language, str], ...] = (
    ("ko", "\uac00-\ud7af\u1100-\u11ff"),
    ("th", "\u0e00-\u0e7f"),
    ("ar", "\u0600-\u06ff"),
    ("he", "\u0590-\u05ff"),
    ("ru", "\u0400-\u04ff"),
    ("el", "\u0370-\u03ff"),
    ("hi", "\u0900-\u097f"),
    ("bn", "\u0980-\u09ff"),
)
_KANA = re.compile("[\u3040-\u30ff]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile("[A-Za-zÀ-ɏ]+(?:['’][A-Za-z]+)?")
COMMON_ENGLISH = """
the of and to in is are was were be it that this for on with as at by an not you i we they he she or from but have has
can do does what how a if so my your there their will would which yes no
don't i'm it's can't i'll that's sorry please
"""
_ENGLISH = frozenset(COMMON_ENGLISH.split())

CAPABILITIES = {"length": "will.verbosity", "formatted": "will.formatting", "own_language": "will.language"}
"""Score of `behaviour` -> capability."""
SPECS = (*specs("length", unit="tokens", better="none"), *specs("formatted", better="none"), *specs("own_language"))
"""The declarations of these scores; `length` is in words."""


def length(text: str) -> int:
    """Return the number of words; a Chinese character counts as one."""
    return len(_WORDS.findall(text))


def formatting(text: str) -> dict[str, bool]:
    """Return which marks an answer uses: bullets, headings, table, bold, code, emoji."""
    return {name: bool(pattern.search(text)) for name, pattern in FORMATS.items()}


def language_of(text: str) -> Language:
    """Return the language of most of the letters, by script alone; `none` for a text without letters.

    Kana and Han mean Japanese if there is more than one Kana per ten Han characters. Latin letters mean English only if
    a fifth of the words are common English ones, or if the text has fewer than four words; another language with Latin
    letters is `other`.
    """
    latin = _LATIN.findall(text)
    # a Latin word counts about as much as two Han characters: 「用 Python 寫」 is Chinese
    counts: dict[Language, float] = {name: len(re.findall(f"[{chars}]", text)) / 3 for name, chars in _SCRIPTS}
    han, kana = len(_HAN.findall(text)), len(_KANA.findall(text))
    counts["ja" if kana * 10 > han else "zh"] = (han + kana) / 2
    common = sum(word.lower().replace("’", "'") in _ENGLISH for word in latin)
    counts["en" if len(latin) < 4 or common * 5 >= len(latin) else "other"] = len(latin)
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else "none"


def mostly_chinese(texts: Sequence[str]) -> bool:
    """Return whether more than half of the texts are Chinese."""
    return sum(language_of(text) == "zh" for text in texts) * 2 > len(texts)


@lru_cache(maxsize=1)
def _telling() -> tuple[frozenset[str], frozenset[str]]:
    """Return (the characters of Simplified text only, the characters of Traditional text only).

    A character shows its script if OpenCC converts it into a different one for the other script, and only its own
    script's national character set has it (GB 2312, Big5): 里, 后, 台 and 于 are in both and show nothing."""
    import opencc

    to_traditional, to_simplified = opencc.OpenCC("s2t"), opencc.OpenCC("t2s")
    common = [chr(i) for i in range(0x4E00, 0xA000)]
    big5, gb = ({c for c in common if c.encode(name, "ignore")} for name in ("big5", "gb2312"))
    simplified = frozenset(c for c in gb - big5 if to_traditional.convert(c) != c)
    traditional = frozenset(c for c in big5 - gb if to_simplified.convert(c) != c)
    return simplified, traditional


def script_of(text: str) -> Literal["traditional", "simplified", "mixed", "either", "none"]:
    """Return the script of the Chinese characters: `either` if all are the same in both, `none` without any."""
    characters = set(_HAN.findall(text))
    if not characters:
        return "none"
    simplified, traditional = (bool(characters & table) for table in _telling())
    if simplified and traditional:
        return "mixed"
    return "simplified" if simplified else "traditional" if traditional else "either"


def behaviour(prompt: str, answer: str) -> dict[str, float]:
    """Return the scores of how a sample was answered. length: words; formatted: 1 if any mark of Markdown is used, else
    0; own_language: 1 if the answer is in the language of the prompt, else 0; absent if one of the two has no letters.
    """
    scores = {"length": float(length(answer)), "formatted": float(any(formatting(answer).values()))}
    asked, said = language_of(prompt), language_of(answer)
    if "none" not in (asked, said):
        scores["own_language"] = float(asked == said)
    return scores


FACTOR = 2.5
"""Answers that are up to this many times longer or shorter count as equally long."""
TELLING = 8
"""With fewer Latin words than this, English and `other` count as the same language."""
ENOUGH = 0.99
LOOP = 4
"""A sequence of three words that occurs at least this often, and makes up a third of the answer, is a loop."""
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
    """The parts and the score, 0 to 1; the module docstring explains them."""

    score: float
    length: float
    tone: float
    format: float
    language: float
    flow: float

    @property
    def same(self) -> bool:
        """Whether no part changed."""
        return min(self.length, self.tone, self.format, self.language, self.flow) >= ENOUGH


def manner(prompt: str, before: str, after: str) -> Manner:
    """Compare how two answers to one prompt are given. prompt: an answer that says only what the prompt says (a name, a
    quotation) has no language of its own.
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
    """Return whether a sequence of three words makes up a third of the answer."""
    said = re.findall(r"[㐀-鿿]|\w+", text.casefold())
    runs = Counter(zip(said, said[1:], said[2:], strict=False))
    if not runs:
        return False
    often = max(runs.values())
    return often >= LOOP and often * 9 >= len(said)
