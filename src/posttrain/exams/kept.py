"""Does an answer still say what the answer before said? A score from 0 to 1, three bands, and the rule that decided.

The content words that an answer adds to the question are compared. With b and a for those of the answer before and
after, and c(x, y) for the share of x's words that y has:

    score = 0.8 * max(c(b, a), c(a, b)) + 0.2 * min(c(b, a), c(a, b))

An answer that became shorter or longer and says the same is kept. A very short answer is weak evidence for a long one:
unless the question asks for one thing, the share of the shorter one's n words is multiplied by n / (n + 0.5). A Chinese
word that the other answer lacks counts by the share of its characters that the other answer has (清朝 and 清代),
without the characters of the question. Two short answers are kept only if one says all of the other.

Words alone do not show when one word reverses the meaning, so rules may change the score (`kept_rules.py`). JSON is
compared by its values. From SAME on, the answers say the same; below DRIFTED, the answer clearly changed. Figures are
in docs/exam.md.

Any respondent may be used as a judge. It sees the question and both answers, in both orders, and answers yes or no. An
opinion that differs between the orders does not count. The judge's opinion is reported with the score and decides
nothing.
"""  # fmt: skip

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.data.control import gate_of
from posttrain.data.scripts import CJK, is_cjk
from posttrain.exams.content_words import content_words, new_words, words
from posttrain.exams.kept_rules import asks_for_one, asks_for_several, asks_to_choose, caps, json_share
from posttrain.exams.normalising import normalise, read_part
from posttrain.inference.protocol import Respondent

__all__ = ["DRIFTED", "MAX_NEW_TOKENS", "SAME", "Kept", "band_of", "kept", "opinion_of", "prompts_of"]

Band = Literal["same", "drifted", "changed"]

SAME = 0.7
"""From this score on: the same content."""
DRIFTED = 0.4
"""From this score on: not clearly changed. The exam counts a probe as kept from here on."""
LARGER = 0.8
"""Weight of the larger of precision and recall."""
THIN = 0.5
"""The n words of the shorter answer weigh n / (n + THIN)."""
SHORT = 2
"""Answers of at most this many content words are short: the score is all or nothing."""
_HAN = re.compile(f"[{CJK}]")


@dataclass(frozen=True)
class Kept:
    """How much of an answer's content was kept.

    score: 0 (nothing) to 1 (all); band: by the thresholds; reason: what decided: `equal`, `empty`, `echo` (only the
    question is left), `json`, `nothing new` (an answer of the question's own words), `words`, `short` (two short
    answers that differ), or the rule that set the score: `number`, `answer`, `polarity`, `choice`, `negation`,
    `correction`, `code`, `refusal`.
    """

    score: float
    band: Band
    reason: str


def band_of(score: float) -> Band:
    """Return the band of a score (0 to 1)."""
    return "same" if score >= SAME else "drifted" if score >= DRIFTED else "changed"


def kept(
    prompt: str, before: str, after: str, *, truncated_before: bool = False, truncated_after: bool = False
) -> Kept:
    """Compare two answers to one prompt; the module docstring has the formula. truncated_before, truncated_after: the
    answer was cut at its limit of tokens, so its last word may be incomplete.
    """
    score, reason = _score(prompt, _whole(before, truncated_before), _whole(after, truncated_after))
    return Kept(score, band_of(score), reason)


def _whole(text: str, truncated: bool) -> str:
    """Return a truncated text without its last word, if that is a word of letters with nothing after it."""
    cut = re.sub(rf"\s+[^\s{CJK}]*\w\Z", "", text) if truncated else text
    return cut or text


def _score(prompt: str, before: str, after: str) -> tuple[float, str]:
    asked, was, now = normalise(prompt), normalise(before), normalise(after)
    if was == now:
        return 1.0, "equal"
    prompt, before, after = read_part(prompt), read_part(before), read_part(after)
    if not was or not now:
        return 0.0, "empty"
    share = json_share(before, after)
    if share is not None:
        return share, "json"
    if now in asked and was not in asked:
        return 0.0, "echo"
    score, reason = _overlap(prompt, before, after)
    for cap in caps(prompt, before, after):
        if (cap.agrees and score < cap.limit) or (not cap.agrees and score > cap.limit):
            score, reason = cap.limit, cap.reason
    return score, reason


def _overlap(prompt: str, before: str, after: str) -> tuple[float, str]:
    ours, theirs = new_words(prompt, before), new_words(prompt, after)
    if (
        theirs and not ours
    ):  # the answer before added no content word: "He doesn't like apples" to "He don't like apples"
        ours, theirs = new_words(prompt, before, words), new_words(prompt, after, words)
    if not ours and not theirs:
        return _all_words(prompt, before, after)
    if not ours or not theirs:
        return 0.0, "nothing new"
    given = frozenset(_HAN.findall("".join(words(prompt))))
    recall, precision = covered(ours, theirs, given), covered(theirs, ours, given)
    if max(len(ours), len(theirs)) <= SHORT and not asks_for_several(prompt):
        recall, precision = (float(share == 1) for share in (recall, precision))
        if not recall and not precision:
            return 0.0, "short"
    if not asks_for_one(prompt):
        if len(theirs) < len(ours):
            precision *= len(theirs) / (len(theirs) + THIN)
        elif len(ours) < len(theirs):
            recall *= len(ours) / (len(ours) + THIN)
    return _weighed(recall, precision), "words"


def _all_words(prompt: str, before: str, after: str) -> tuple[float, str]:
    """Compare two answers that use only words of the question: every word counts. The smaller share decides, unless the
    question offers a choice."""
    ours, theirs = (tuple(dict.fromkeys(content_words(text) or words(text))) for text in (before, after))
    if not ours or not theirs:
        return 0.0, "nothing new"
    recall, precision = covered(ours, theirs), covered(theirs, ours)
    if asks_to_choose(prompt):
        return _weighed(recall, precision), "words"
    return min(recall, precision), "words"


def _weighed(recall: float, precision: float) -> float:
    return LARGER * max(recall, precision) + (1 - LARGER) * min(recall, precision)


def covered(ours: Sequence[str], theirs: Collection[str], given: frozenset[str] = frozenset()) -> float:
    """Return the share (0 to 1) of our words that theirs say. given: the characters of the prompt, which do not count
    when a Chinese word is compared by its characters.
    """
    characters = frozenset(_HAN.findall("".join(theirs)))
    return sum(_credit(word, theirs, characters, given) for word in ours) / len(ours)


def _credit(word: str, theirs: Collection[str], characters: frozenset[str], given: frozenset[str]) -> float:
    if word in theirs:
        return 1.0
    own = [c for c in _HAN.findall(word) if c not in given]
    return sum(c in characters for c in own) / len(own) if own else 0.0


WORDING = {
    "en": (
        "Two answers to the same question are given. Do both say the same thing in substance? Differences of wording, "
        "length or style do not matter; another fact, name, number, or the opposite does.\n\nQuestion: {prompt}\n\n"
        "Answer A: {a}\n\nAnswer B: {b}\n\nReply with one word, yes or no."
    ),
    "zh": (
        "以下是同一個問題的兩個回答。兩者的實質內容是否相同？用字、長短、語氣不同無妨；事實、人名、數字不同，或意思相反，"
        "就是不同。\n\n問題：{prompt}\n\n回答甲：{a}\n\n回答乙：{b}\n\n只回答一個字：是或否。"
    ),
}
_LEAD = r"^\W*(?:(?:the )?answer(?: is)?\W+|答案是?\W*)?"
_YES = re.compile(
    _LEAD + r"(?:yes\b(?!\W+(?:and|or) no\b)|same\b|是(?!否|不是)|相同|[對对](?!不起|不住|於|于)|同(?!時|时))", re.I
)
_NO = re.compile(
    _LEAD + r"(?:no\b(?!\W+(?:and|or) yes\b)|not(?! sure| certain)\b|different\b|否|"
    r"不(?!好意思|太?確定|太?确定|知道|清楚)|[沒没]有?相同)",
    re.I,
)
"""An apology (對不起) or a doubt (不確定) is neither yes nor no."""
MAX_NEW_TOKENS = 8


def prompts_of(judge: Respondent, prompt: str, before: str, after: str) -> list[str]:
    """Return the prompts that ask the judge about two answers, in both orders; none for equal texts."""
    if before.strip() == after.strip():
        return []
    one, other = _readable(before, judge), _readable(after, judge)
    return [_asked(prompt, one, other), _asked(prompt, other, one)]


def opinion_of(said: Sequence[str]) -> bool | None:
    """Return whether the judge finds that both answers say the same; None if its opinion is unclear. said: the judge's
    replies in both orders; empty for equal texts, which gives True.
    """
    opinions = [True if _YES.match(text) else False if _NO.match(text) else None for text in said]
    return True if not opinions else opinions[0] if len(set(opinions)) == 1 else None


def _readable(answer: str, judge: Respondent) -> str:
    """Return an answer without texts that are control tokens of the judge: it cannot be asked with them."""
    return answer if judge.tokenizer is None else gate_of(judge.tokenizer).without(answer, judge.tokenizer)


def _asked(prompt: str, a: str, b: str) -> str:
    return WORDING["zh" if any(map(is_cjk, prompt)) else "en"].format(
        prompt=prompt, a=a or "(nothing)", b=b or "(nothing)"
    )
