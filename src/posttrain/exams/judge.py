"""A model as judge: do two answers to one question say the same?

The judge is any respondent, a model of this machine or an endpoint. It sees the question and both answers, in both
orders, and answers yes or no; an opinion that the order turns round is none. What it says stands beside the measure of
`kept.py` with the agreement of the two (share, and Cohen's kappa), and decides nothing: judges are models, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.data.control import gate_of
from posttrain.data.scripts import is_cjk
from posttrain.inference.protocol import Respondent

__all__ = ["MAX_NEW_TOKENS", "opinion_of", "prompts_of"]

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
"""An apology (對不起) or a doubt (不確定) is neither."""
MAX_NEW_TOKENS = 8


def prompts_of(judge: Respondent, prompt: str, before: str, after: str) -> list[str]:
    """What the judge is asked about two answers to a prompt, in both orders; nothing about equal texts."""
    if before.strip() == after.strip():
        return []
    one, other = _readable(before, judge), _readable(after, judge)
    return [_asked(prompt, one, other), _asked(prompt, other, one)]


def opinion_of(said: Sequence[str]) -> bool | None:
    """Do both answers say the same? None: no clear opinion. said: the judge's words in both orders, none of equal
    texts.
    """
    opinions = [_opinion(text) for text in said]
    return True if not opinions else opinions[0] if len(set(opinions)) == 1 else None


def _readable(answer: str, judge: Respondent) -> str:
    """Another model's answer without what is a control token to the judge, which would not be asked about it."""
    return answer if judge.tokenizer is None else gate_of(judge.tokenizer).without(answer, judge.tokenizer)


def _asked(prompt: str, a: str, b: str) -> str:
    return WORDING["zh" if any(map(is_cjk, prompt)) else "en"].format(
        prompt=prompt, a=a or "(nothing)", b=b or "(nothing)"
    )


def _opinion(text: str) -> bool | None:
    return True if _YES.match(text) else False if _NO.match(text) else None
