"""What does not change an answer is removed before answers are compared.

`normalise` removes width and composition (NFKC), case, punctuation, spaces beside Chinese characters, a leading English
article, and the two ways to write 台/臺. What changes a number stays: the minus before it, the point within it.
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
"""What a Chinese name may be followed by in one dictionary word and still be itself: 上海市."""
_NUMERAL = re.compile("[二三四五六七八九十百千万两零]|[一二三四五六七八九十百千万亿两零〇]{2,}")
_COUNTED = re.compile("[个颗只支条本张位名人座部台辆件次天年月日岁周点倍元块度公米里斤大种项届层楼]|分[钟之]|秒|小时")
_COUNTING = re.compile("[一二三四五六七八九十百千万亿两零〇第.\\d]$")
"""A numeral before a measure word is a number, though the dictionary ties them: 二十 in 二十個, not in 一百二十個."""
_FENCED = re.compile(r"```\w*\s*\n(.*?)\n?\s*```", re.DOTALL)
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")
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


def spans_of(text: str, words: str) -> list[tuple[int, int]]:
    """Where normalised `text` has `words` as whole words (a Chinese character is its own word): (start, end) each."""
    if not words:
        return []
    word = rf"[^\W{CJK}]"
    left = rf"(?<!{word})(?<!\d\.)" if re.match(word, words) else ""
    right = rf"(?!{word}|\.\d)" if re.match(word, words[-1]) else ""
    return [found.span() for found in re.finditer(left + re.escape(words) + right, text)]


def words_of(text: str, words: str) -> list[tuple[int, int]]:
    """As `spans_of`, and in Chinese only where jieba's dictionary words do not reach over the ends: 金, not 金屬.

    Both folded. A word that the dictionary does not know stands alone wherever it stands; so do 綠 in 綠色 and
    上海 in 上海市.
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
    """Up to the first sentence end: 。！？ ! ? a line break, or a full stop after a word of three letters or more."""
    for sentence in _SENTENCE_END.split(text):
        if normalise(sentence):
            return sentence.strip()
    return ""


def json_in(answer: str, **settings: Any) -> dict[str, Any] | list[Any] | None:
    """The JSON object or list that an answer is, with a code fence around it or without; None when it is none.

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
"""Characters read of an answer or a question by the rules that look for an object: more than models say at once, and
little enough that a text without an end does not take forever."""


def read_part(text: str) -> str:
    """The text as far as it is read: whole up to `LONGEST` characters, else its first and its last half of them."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n{text[-half:]}"


@lru_cache(maxsize=65536)
def folded(text: str) -> str:
    """Normalised, in Simplified characters (OpenCC's t2s), so that both scripts say the same and one list of cue words
    reads both; and without the accents of Latin letters, which models leave out: Brontë and Bronte, São and Sao."""
    text = normalise(_ACCENTS.sub(r"\1", unicodedata.normalize("NFD", text)))
    return to_simplified(text) if _HAS_CJK.search(text) else text
