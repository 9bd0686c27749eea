"""The words of an answer that carry content: stemmed, without stop words, in English and Chinese.

Chinese is folded to Simplified by OpenCC and cut by jieba. Numbers become digits in any spelling (twelve, 十二, 1,000),
and plurals become singular. "Arr! The capital o' France be Paris, matey!" becomes capital, france, paris: greetings,
interjections and terms of address carry no content.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from posttrain.data.scripts import CJK
from posttrain.exams.metrics.tokens import jieba_cut, jieba_tags, to_simplified
from posttrain.exams.numerals import number_of

__all__ = ["content_words", "fold", "is_number", "new_words", "proper_names", "sentences", "words"]

_ENGLISH = """
a an the this that these those it its it's he him his she her hers they them their theirs we us our
ours you your yours i me my mine myself yourself itself themselves himself herself one ones be am is
are was were been being has have had having do does did doing done will would shall should can could
may might must ought i'm i'll i've i'd you're you'll you've he's she's we're we'll they're that's
there's what's who's here's isn't aren't wasn't weren't don't doesn't didn't won't wouldn't can't
cannot couldn't shouldn't let's and or but nor so yet if then than as of at by for from in into on
onto to with without within about over under up down out off above below between among during before
after while since until upon through across per via because although though however therefore thus
hence also too very quite rather just only even still already again ever not no yes never none
nothing neither either both each every any some all most more less much many few other another such
same own who whom whose which what when where why how there here now get got go gone make made take
say said tell know like way thing lot etc actually indeed really simply basically typically usually
generally commonly often sometimes called known named considered referred refer refers mean means
answer question please sure certainly ok okay well arr arrr arrgh aye matey mateys ahoy yo ho avast
ye yer o' mornin hey hi hello oh ah wow haha hmm um s t re ve ll d m
"""
_CHINESE = """
的 了 着 过 地 得 之 其 所 是 为 叫 叫做 称 称为 就是 即 也 也就是 就 都 才 而 而是 且
并 并且 和 与 及 以及 或 或者 还是 但 但是 不过 然而 因为 所以 因此 由于 如果 那么 虽然 可以
能 能够 会 要 需要 应该 应 将 把 被 让 使 给 在 于 从 到 由 对 向 以 用 用来 跟 同 这
那 这个 那个 这些 那些 这样 那样 它 他 她 我 你 您 我们 你们 他们 它们 她们 自己 谁 什么 哪
哪里 哪个 怎么 怎样 如何 多少 几 吗 呢 吧 啊 喔 哦 呀 啦 唷 哟 咧 喵 嘛 耶 哈 哈哈 嗨
你好 请 请问 主人 哎呀 不 没 没有 不是 非 无 是的 对 好 好的 有 又 再 很 非常 更 最 太
比较 一个 一种 一些 一 个 种 位 些 次 等 等等 则 既 里 里面 中 上 下 时 时候 后 前 内
之间 其中 此外 另外 例如 比如 像是 像 通常 一般 大约 约 大概 左右 多半 常常 常 经常 主要 其实
当然 只 只有 只要 便 却 仍 那 来 去 出 起来 属于 来说 来看 而言 说 认为 答案 问题 有人
"""
ENGLISH = frozenset(_ENGLISH.split())
CHINESE = frozenset(_CHINESE.split())
"""Words that carry no content in an answer: function words, fillers, interjections and terms of address. English in
lower case with straight apostrophes (and the rest of a cut contraction); Chinese in Simplified characters, as jieba
cuts them. These are our own lists: the usual ones remove numbers, or keep `arr` and 喔."""

_UNITS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: value for value, word in enumerate(_UNITS.split())}
_VALUES |= {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ENGLISH_NUMBER = re.compile(
    r"\b(?:a (?={scales}))?(?:{any})(?:[- ](?:and )?(?:{any}))*\b".format(
        scales="|".join(_SCALES), any="|".join((*_VALUES, *_SCALES))
    )
)
LARGEST = 10**15
_MEASURES = "个天年月日点分秒度元块岁倍次条只支颗页人种脚位名小公英米克斤里%步句字层楼届"
_NUMERAL = re.compile(rf"(第?)([零〇一二两三四五六七八九十百千万亿]+)(?=[{_MEASURES}])")
_WORD = re.compile(rf"[{CJK}]+|\d[\d,]*(?:\.\d+)?|[^\W\d_{CJK}][^\W_{CJK}]*(?:'[^\W\d_{CJK}]+)*'?")
_AROUND = "。.! "
_LIST_MARK = re.compile(r"^[^\S\n]*(?:\d{1,2}[.)、]|[(（]\d{1,2}[)）])\s+", re.MULTILINE)
_HAN = re.compile(f"[{CJK}]")
_ENDING = re.compile(r"(?:ing|edly|ed|ly|ions?|es?)$")
_NAME = re.compile(r"(?:(?<=[a-z0-9,;'’)] )|(?<=[A-Z][a-z] )|(?<=[a-z]-))([A-Z][^\W\d_]+)")
_SENTENCE = re.compile(r"[。！？!?\n]+|\.(?=\s|$)")


def fold(text: str) -> str:
    """Return the text in NFKC, lower case, Simplified characters, straight apostrophes, without list marks ("1. ")."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'").casefold()
    return to_simplified(_LIST_MARK.sub("", text))


def sentences(text: str) -> list[str]:
    """Return the folded sentences that contain a word."""
    return [part for part in _SENTENCE.split(fold(text)) if _WORD.search(part)]


@lru_cache(maxsize=65536)
def words(text: str) -> tuple[str, ...]:
    """Return every word in order, folded and stemmed; numbers in digits."""
    found: list[str] = []
    folded = fold(text)
    bare = folded.strip(_AROUND)
    # in a sentence it is two numbers, or a number and a word
    several = "/" in bare or "分之" in bare or bare.endswith("年")
    alone = None if several else number_of(bare)
    if alone is not None:
        return (f"{alone:f}",)
    for piece in _WORD.findall(_ENGLISH_NUMBER.sub(_english_in_digits, _NUMERAL.sub(_in_digits, folded))):
        if re.match(f"[{CJK}]", piece):
            found += [word for word in jieba_cut(piece) if word.strip()]
        else:
            found.append(_stem(piece))
    return tuple(found)


def _in_digits(match: re.Match[str]) -> str:
    value = number_of(match[2])
    return match[0] if value is None or match[2] == "一" else f"{match[1]}{value:f}"


def _english_in_digits(match: re.Match[str]) -> str:
    """Return an English number in digits: fifty-six, three hundred and sixty-five, the 2 of "two million". A single
    "one" stays a word ("one of the")."""
    said = [word for word in re.split(r"[- ]+", match[0]) if word not in ("and", "a")]
    if said == ["one"]:
        return match[0]
    total = part = 0
    for word in said:
        if word in _VALUES:
            part += _VALUES[word]
        elif word == "hundred":
            part = (part or 1) * 100
        else:
            total, part = total + (part or 1) * _SCALES[word], 0
        if part > LARGEST:  # "hundred hundred hundred ..." of a model that repeats itself is not a number
            return match[0]
    return str(total + part)


def _stem(word: str) -> str:
    """Return a light stem: numbers in digits, no possessive, no plural (step 1a of Porter's stemmer).

    M. F. Porter, "An algorithm for suffix stripping", 1980. `goes` becomes `goe`, not `go`, so that a correction of
    grammar stays visible."""
    if word[0].isdigit():
        number = word.replace(",", "").rstrip(".")
        return f"{number_of(number):f}" if number_of(number) is not None else number
    if word in ENGLISH:
        return word
    word = word.removesuffix("'s").rstrip("'")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def content_words(text: str) -> tuple[str, ...]:
    """Return `words` without the stop words of both languages, which include single Latin letters without meaning."""
    return tuple(word for word in words(text) if word not in ENGLISH and word not in CHINESE)


def new_words(prompt: str, text: str, source: Callable[[str], tuple[str, ...]] = content_words) -> tuple[str, ...]:
    """Return the roots of the words of a text that its prompt does not have, each once, in order.

    source: `content_words`, or `words` to include stop words. The words of the prompt are left out before endings are
    cut, so `goes` is new if the prompt says `go`.
    """
    asked, whole = set(words(prompt)), fold(prompt)
    return tuple(
        dict.fromkeys(
            _root(word)
            for word in source(text)
            if word not in asked and not (_HAN.match(word) and word in whole)  # jieba cuts 水在幾度 into 水在, 幾, 度
        )
    )


def _root(word: str) -> str:
    """Return the word without the most common English endings: `attributed` and `attribution` become one word."""
    return _ENDING.sub("", word) if word.isascii() and len(word) > 5 else word


@lru_cache(maxsize=65536)
def proper_names(text: str) -> frozenset[str]:
    """Return the roots of names: capitalised Latin words inside sentences, and Chinese names by jieba's tags."""
    found = {_root(word) for name in _NAME.findall(text) for word in content_words(name)}
    if _HAN.search(text):
        found |= {word for word, tag in jieba_tags(fold(text)) if tag.startswith(("nr", "ns", "nt", "nz"))}
    return frozenset(found)


def is_number(word: str) -> bool:
    """Return whether a word of `words` is a number."""
    return word[:1].isdigit()
