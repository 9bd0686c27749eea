"""Remove what does not change an answer, before answers are compared.

`normalise` removes differences of width and composition (NFKC), case, punctuation, spaces next to Chinese characters, a
leading English article, and the difference between 台 and 臺. What changes a number stays: the minus before it and the
decimal point in it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from typing import Any

from posttrain.data.scripts import CJK
from posttrain.exams.metrics.tokens import jieba_cut, to_simplified

__all__ = ["first_sentence", "folded", "json_in", "normalise", "read_part", "spans_of", "words_of"]

VARIANTS = str.maketrans({"臺": "台", "裏": "裡", "峯": "峰"})
_SPACE_BESIDE_CJK = re.compile(rf"(?<=[{CJK}]) +| +(?=[{CJK}])")
_HAS_CJK = re.compile(f"[{CJK}]")
_ACCENTS = re.compile("([A-Za-z])[\u0300-\u036f]+")
_KIND = tuple("市县省国州镇区岛湖江河山人色")
"""Characters that may follow a Chinese name in the same dictionary word without changing what it names: 上海市."""
_NUMERAL = re.compile("[二三四五六七八九十百千万两零]|[一二三四五六七八九十百千万亿两零〇]{2,}")
_COUNTED = re.compile("[个颗只支条本张位名人座部台辆件次天年月日岁周点倍元块度公米里斤大种项届层楼]|分[钟之]|秒|小时")
_COUNTING = re.compile("[一二三四五六七八九十百千万亿两零〇第.\\d]$")
"""A numeral before a measure word is a number, although the dictionary has both as one word: 二十 in 二十個, not in
一百二十個."""
_FENCED = re.compile(r"```\w*\s*\n(.*?)\n?\s*```", re.DOTALL)
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")
_SENTENCE_END = re.compile(r"[。！？!?\n]+|(?<=\w{3})\.(?=\s|$)|(?<=[^\x00-\x7f])\.(?=\s|$)")


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """Return the text without what does not change an answer; a second application changes nothing."""
    for _ in range(16):  # removing one thing can make another one removable: "the, a cat"
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


def spans_of(text: str, words: str) -> list[tuple[int, int]]:
    """Return the spans (start, end) of `words` as whole words in normalised `text`; a Chinese character is a word."""
    if not words:
        return []
    word = rf"[^\W{CJK}]"
    left = rf"(?<!{word})(?<!\d\.)" if re.match(word, words) else ""
    right = rf"(?!{word}|\.\d)" if re.match(word, words[-1]) else ""
    return [found.span() for found in re.finditer(left + re.escape(words) + right, text)]


def words_of(text: str, words: str) -> list[tuple[int, int]]:
    """Return the spans of `spans_of`; in Chinese only those at the borders of jieba's dictionary words: 金, not 金屬.

    Both arguments are folded. A word that is not in the dictionary is always at a border; 綠 in 綠色 and 上海 in 上海市
    count too.
    """
    found = spans_of(text, words)
    if not found or not _HAS_CJK.search(words):
        return found
    at, edges = 0, {0}
    for piece in jieba_cut(text, guess=False):
        at += len(piece)
        edges.add(at)

    def alone(start: int, end: int) -> bool:
        if _NUMERAL.fullmatch(words):
            return bool(_COUNTED.match(text, end) and not _COUNTING.search(text[:start])) or (
                start in edges and end in edges
            )
        end += end not in edges and text[end : end + 1] in ("色" if len(words) == 1 else _KIND)
        left = start in edges or not _HAS_CJK.match(text[start])
        return left and (end in edges or not _HAS_CJK.match(text[end - 1]))

    return [span for span in found if alone(*span)]


def first_sentence(text: str) -> str:
    """Return the text up to the first sentence end that follows a word. Sentence ends are 。！？ ! ? a line
    break, or a full stop after a word of at least three letters.
    """
    for sentence in _SENTENCE_END.split(text):
        if normalise(sentence):
            return sentence.strip()
    return ""


def json_in(answer: str, **settings: Any) -> dict[str, Any] | list[Any] | None:
    """Return the JSON object or list that the whole answer is, with or without a code fence, or None.
    settings: of `json.loads`.
    """
    text = answer.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, **settings)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


LONGEST = 6000
"""Characters that the rules that look for an object read of an answer or a question: more than models usually say at
once, and few enough that a text without an end does not take too long."""


def read_part(text: str) -> str:
    """Return the part that is read: the text up to `LONGEST` characters, else its first and last `LONGEST` / 2."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n{text[-half:]}"


@lru_cache(maxsize=65536)
def folded(text: str) -> str:
    """Return the normalised text in Simplified characters (OpenCC's t2s), without the accents of Latin letters.

    So both scripts give the same text, and one list of cue words reads both. Models leave accents out: Brontë and
    Bronte, São and Sao.
    """
    text = normalise(_ACCENTS.sub(r"\1", unicodedata.normalize("NFD", text)))
    return to_simplified(text) if _HAS_CJK.search(text) else text
