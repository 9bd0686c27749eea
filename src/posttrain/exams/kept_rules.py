"""Rules for cases in which one word reverses the meaning: they change the score of content kept, one function each.

Every rule looks at (prompt, before, after) and returns a `Cap`, or None if it does not apply. The rules are few, and
are written for what small chat models do; docs/notes.md gives the effect of each one on the labelled pairs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from posttrain.exams.content_words import content_words, fold, is_number, new_words, proper_names, sentences, words
from posttrain.exams.normalising import normalise
from posttrain.exams.refusals import is_refusal

__all__ = ["Cap", "asks_for_one", "asks_for_several", "asks_to_choose", "caps", "json_share"]

LOW = 0.2
"""The score of an answer that differs according to a rule; it is below the band `drifted`."""
GIST = 0.55
"""The least score of two answers to a question for one thing, if their first sentences give the same answer."""
BOTH_DECLINE = 0.75
"""The least score of two refusals in different words."""

_ASKS_ONE = re.compile(
    r"\b(?:who|whom|whose|where|which|when (?:did|was|is|were|does|will))\b"
    r"|\bhow (?:many|much|old|long|far|tall|high|deep|big|large|fast)\b"
    r"|\bwhat (?:is|was|'s) the (?!difference|meaning|purpose|best|point|role|reason|definition)|\b(?:at|in|on) what\b"
    r"|\bwhat (?:year|day|date|number|colou?r|language|country|city|planet|animal|element|currency|temperature|time)\b"
    r"|谁|哪(?!些)|几|多少|多(?:高|长|大|远|重|深)|何时|何地|什么(?:时候|名字|地方|颜色|语言)|叫什么"
    r"|的(?!意思|含义|作用|区别|差别|目的|原因|优点|缺点|好处|定义|角色|重点)\w{1,12}是什么"
)
_ASKS_SEVERAL = re.compile(
    r"\b(?:two|three|four|five|several|some|list|names of)\b|[两三四五六][个种项点位座种条]|哪些|列出"
)
_ASKS_YES_NO = re.compile(
    r"^\W*(?:is|are|was|were|do|does|did|can|could|should|would|will|has|have|had|may|must) "
    r"|吗|是不是|是否|能不能|会不会|有没有|可不可以"
)
_CHOICE = re.compile(r"\bor\b|还是")
_YES = re.compile(
    r"^\W*(?:(?:yes|yep|yeah|aye|correct|indeed|true)\b|是的|是(?=\W|$)|对(?=\W|的|啊|$)|没错|可以|会(?=\W|的|$)|能(?=\W|$))"
)
_NO = re.compile(r"^\W*(?:(?:no|nope|nay|not|false|never)\b|才?不|没有|否)")
_NEGATION = re.compile(r"\b(?:not|no|never|cannot|without)\b|n't\b|不|没|非|别|无法|未")
_NEGATOR = re.compile(r"not|no|never|cannot|without|.*n't|不.*|没.*|别|并?非|无法|未|禁止")
_HEDGE = re.compile(r"depend|maybe|perhaps|\bboth\b|subjective|看|因人而异|不一定|也许|可能")
_CLAUSE = re.compile(r"[,，;；:：。.!！?？\n()（）]+(?!\d)|\b(?:but|because|which|after|and|with|located)\b")
_PART = re.compile(r"[,，;；:：。.!！?？\n]+(?!\d)")
_CORRECTION = re.compile(r"\bbut (?:it's |it is |is )?(?:actually|really|in fact)\b|但其实|其实是|实际上")
_FENCE = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(```|\Z)", re.DOTALL)


class Cap(NamedTuple):
    """What a rule decides. limit: the highest score allowed; if `agrees`, the lowest score allowed instead. `agrees` is
    for answers that say the same, such as a bare yes and a yes with its reasons.
    """

    limit: float
    reason: str
    agrees: bool = False


def caps(prompt: str, before: str, after: str) -> Iterator[Cap]:
    """Yield the decisions of the rules, in the order in which they are applied."""
    for rule in (_gist, _refusal, _polarity, _choice, _number, _answer, _correction, _negation, _code):
        cap = rule(prompt, before, after)
        if cap is not None:
            yield cap


def asks_for_one(prompt: str) -> bool:
    """Return whether a question asks for one thing: who, where, which, how many, 誰, 哪裡, 幾個."""
    return bool(_ASKS_ONE.search(fold(prompt))) and not asks_for_several(prompt)


def asks_for_several(prompt: str) -> bool:
    """Return whether a prompt asks for a list: three fruits, 三種水果, 哪些."""
    return bool(_ASKS_SEVERAL.search(fold(prompt)))


def asks_to_choose(prompt: str) -> bool:
    """Return whether a prompt offers things to choose from: a cat or a dog, 城市還是鄉下."""
    return bool(_CHOICE.search(fold(prompt)))


def _gist(prompt: str, before: str, after: str) -> Cap | None:
    """Raise the score to GIST if the first sentences give the same answer; later rules may lower it."""
    if not asks_for_one(prompt):
        return None
    was, now = (frozenset(new_words(prompt, next(iter(sentences(text)), ""))) for text in (before, after))
    return Cap(GIST, "answer", agrees=True) if was and was == now else None


def _choice(prompt: str, before: str, after: str) -> Cap | None:
    """Lower the score if each answer says something from the prompt's choices that the other does not."""
    if not asks_to_choose(prompt):
        return None
    offered = set(content_words(prompt))
    was, now = (offered & set(content_words(text)) for text in (before, after))
    return Cap(LOW, "choice") if was - now and now - was else None


def _refusal(prompt: str, before: str, after: str) -> Cap | None:
    """Raise the score if both answers decline, in any words."""
    return Cap(BOTH_DECLINE, "refusal", agrees=True) if is_refusal(before) and is_refusal(after) else None


def _polarity(prompt: str, before: str, after: str) -> Cap | None:
    """Lower the score if a yes-or-no question has the opposite answer. Raise it to 1 if both say the same and one of
    them is a bare yes or no."""
    if not _ASKS_YES_NO.search(fold(prompt)) or asks_to_choose(prompt):
        return None
    was, now = _says_yes(before), _says_yes(after)
    if was is None or now is None:
        return None
    if was != now:
        return Cap(LOW, "polarity")
    bare = not new_words(prompt, before) or not new_words(prompt, after)
    return Cap(1.0, "polarity", agrees=True) if bare else None


def _says_yes(text: str) -> bool | None:
    """Return True for yes, False for no, None if the first sentence hedges."""
    folded = fold(text)
    if _NO.search(folded):
        return False
    if _YES.search(folded):
        return True
    first = next(iter(sentences(text)), "")
    if _HEDGE.search(first) or not content_words(first):
        return None
    return not _NEGATION.search(_PART.split(first)[0])


def _number(prompt: str, before: str, after: str) -> Cap | None:
    """Lower the score if both answers have numbers that the question does not have, and none in common."""
    was, now = ({word for word in new_words(prompt, text, words) if is_number(word)} for text in (before, after))
    return Cap(LOW, "number") if was and now and not was & now else None


def _answer(prompt: str, before: str, after: str) -> Cap | None:
    """Limit the score if a question for one thing has another answer: the first clause that adds a word.

    limit: the larger share of one answer's first clause that the other answer says anywhere; if both clauses contain
    names, the share of the names."""
    if not asks_for_one(prompt):
        return None
    was, now = _first_said(prompt, before), _first_said(prompt, after)
    if not was or not now:
        return None
    names_before, names_after = proper_names(before), proper_names(after)
    if names_before & set(was) and names_after & set(now):
        was, now = (tuple(w for w in ws if w in ns) for ws, ns in ((was, names_before), (now, names_after)))
    all_before, all_after = new_words(prompt, before), new_words(prompt, after)
    limit = max(_said(was, all_after), _said(now, all_before))
    if max(len(was), len(now)) <= 2:  # one name or one number: all or nothing
        limit = limit if limit == 1 else LOW
    return Cap(limit, "answer")


def _first_said(prompt: str, text: str) -> tuple[str, ...]:
    """Return the new words of the first clause that has any."""
    parts = (new_words(prompt, part) for part in _CLAUSE.split(fold(text)))
    return next((part for part in parts if part), ())


def _said(ours: tuple[str, ...], theirs: tuple[str, ...]) -> float:
    """Return the share (0 to 1) of our words that theirs contain; a Chinese word also as a part (紅 and 紅色)."""
    found = sum(
        any(word == other or (not word.isascii() and (word in other or other in word)) for other in theirs)
        for word in ours
    )
    return found / len(ours)


def _correction(prompt: str, before: str, after: str) -> Cap | None:
    """Lower the score if one answer corrects itself and the other does not say what the correction says. Example:
    "Jupiter, but it's actually Saturn"."""
    for one, other in ((before, after), (after, before)):
        found = _CORRECTION.search(fold(one))
        if found:
            corrected = _first_said(prompt, fold(one)[found.end() :])
            if corrected and not _said(corrected, new_words(prompt, other)):
                return Cap(LOW, "correction")
    return None


def _negation(prompt: str, before: str, after: str) -> Cap | None:
    """Lower the score if half or more of the shared words are negated in one answer and not in the other."""
    was, now = _denied(before), _denied(after)
    shared = [word for word in was if word in now]
    turned = sum(not was[word] & now[word] for word in shared)
    return Cap(LOW, "negation") if shared and turned * 2 >= len(shared) else None


def _denied(text: str) -> dict[str, set[bool]]:
    """Map each content word to a set: True is in it if a negation is within the three words before it in a clause."""
    found: dict[str, set[bool]] = {}
    for part in _PART.split(fold(text)):
        said, content = words(part), set(content_words(part))
        for i, word in enumerate(said):
            if word in content:
                denied = any(_NEGATOR.fullmatch(near) for near in said[max(0, i - 3) : i])
                found.setdefault(word, set()).add(denied)
    return found


def _code(prompt: str, before: str, after: str) -> Cap | None:
    """Lower the score if both answers give code that differs, without spaces, within the length of the shorter one."""
    was, now = (_code_lines(text) for text in (before, after))
    if not was or not now:
        return None
    both = min(len(was), len(now))
    return None if was[:both] == now[:both] else Cap(LOW, "code")


def _code_lines(text: str) -> list[str]:
    block = _FENCE.search(text)
    if block is None:
        return []
    lines = ["".join(line.split()) for line in block[2].splitlines() if line.strip()]
    return lines if block[3] else lines[:-1] or lines  # a block without an end was cut within its last line


def json_share(before: str, after: str) -> float | None:
    """Return the share of equal values if both answers contain a JSON object or list, else None. 1 for the same values,
    otherwise `LOW` times the share of equal values. Words around the JSON are allowed, code of another language is not.
    """
    was, now = _json_leaves(before), _json_leaves(after)
    if was is None or now is None:
        return None
    if was == now:
        return 1.0
    return LOW * len(was & now) / max(len(was), len(now))


def _json_leaves(text: str) -> frozenset[tuple[str, str]] | None:
    """Return the (path, normalised value) pairs of the first JSON object or list in the text, or None."""
    block = _FENCE.search(text)
    if block and block[1].lower() not in ("", "json"):
        return None
    decoder = json.JSONDecoder()
    for start in re.finditer(r"[\[{]", text):
        try:
            value, _ = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict | list) and value:
            return frozenset(_leaves(value, ""))
    return None


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}/{normalise(str(key))}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}/{i}")
    else:
        yield path, normalise(value) if isinstance(value, str) else json.dumps(value)
