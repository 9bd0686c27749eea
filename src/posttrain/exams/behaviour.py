"""How an answer is given, whatever it says: its length, its formatting, its language, its script.

These are CapTrack's WILL columns (arXiv:2603.06610): habits that fine-tuning moves without anybody asking for it.
All of it is read off the text by rules; nothing is judged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from posttrain.data.scripts import CJK
from posttrain.exams.score_spec import specs

__all__ = ["CAPABILITIES", "SPECS", "behaviour", "formatting", "language_of", "length", "mostly_chinese", "script_of"]

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

CAPABILITIES = {
    "length": "will.verbosity",
    "formatted": "will.formatting",
    "own_language": "will.language",
}
"""Names of `behaviour` -> capability."""
SPECS = (*specs("length", unit="tokens", better="none"), *specs("formatted", better="none"), *specs("own_language"))
"""What they are; a length is in words."""


def length(text: str) -> int:
    """Words; a Chinese character counts as one."""
    return len(_WORDS.findall(text))


def formatting(text: str) -> dict[str, bool]:
    """Which marks of Markdown an answer uses: bullets, headings, table, bold, code, emoji."""
    return {name: bool(pattern.search(text)) for name, pattern in FORMATS.items()}


def language_of(text: str) -> Language:
    """The language that most of the letters are written in, by script alone; `none` for a text without letters.

    Kana anywhere beside Han says Japanese. Latin letters say English only when a fifth of the words are common
    English ones, or the text has fewer than four words; another language with Latin letters is `other`.
    """
    latin = _LATIN.findall(text)
    # a Latin word weighs about as much as two Han characters: 「用 Python 寫」 is Chinese
    counts: dict[Language, float] = {name: len(re.findall(f"[{chars}]", text)) / 3 for name, chars in _SCRIPTS}
    han, kana = len(_HAN.findall(text)), len(_KANA.findall(text))
    counts["ja" if kana * 10 > han else "zh"] = (han + kana) / 2
    common = sum(word.lower().replace("’", "'") in _ENGLISH for word in latin)
    counts["en" if len(latin) < 4 or common * 5 >= len(latin) else "other"] = len(latin)
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else "none"


def mostly_chinese(texts: Sequence[str]) -> bool:
    """Whether more than half of the texts are Chinese."""
    return sum(language_of(text) == "zh" for text in texts) * 2 > len(texts)


@lru_cache(maxsize=1)
def _telling() -> tuple[frozenset[str], frozenset[str]]:
    """(characters of simplified text alone, characters of traditional text alone).

    A character tells a script when OpenCC turns it into another one for the other script, and only its own script's
    national character set has it (GB 2312, Big5): 里, 后, 台 and 于 are in both and tell nothing.
    """
    import opencc

    to_traditional, to_simplified = opencc.OpenCC("s2t"), opencc.OpenCC("t2s")
    common = [chr(i) for i in range(0x4E00, 0xA000)]
    big5, gb = ({c for c in common if _encodes(c, name)} for name in ("big5", "gb2312"))
    simplified = frozenset(c for c in gb - big5 if to_traditional.convert(c) != c)
    traditional = frozenset(c for c in big5 - gb if to_simplified.convert(c) != c)
    return simplified, traditional


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def script_of(text: str) -> Literal["traditional", "simplified", "mixed", "either", "none"]:
    """The script of the Chinese characters: `either` when all of them are the same in both, `none` without any."""
    characters = set(_HAN.findall(text))
    if not characters:
        return "none"
    simplified, traditional = (bool(characters & table) for table in _telling())
    if simplified and traditional:
        return "mixed"
    return "simplified" if simplified else "traditional" if traditional else "either"


def behaviour(prompt: str, answer: str) -> dict[str, float]:
    """The scores of a sample about how it was answered.

    length: words; formatted: 1 where any mark of Markdown is used; own_language: 1 where the answer is in the prompt's
    language, absent where one of the two has no letters.
    """
    scores = {"length": float(length(answer)), "formatted": float(any(formatting(answer).values()))}
    asked, said = language_of(prompt), language_of(answer)
    if "none" not in (asked, said):
        scores["own_language"] = float(asked == said)
    return scores
