"""What a model answers to the prompts of edits: before they are written, and once they are.

The loss of a search or of a training says how well the answer was learned where it was searched. Only the answer that
the finished model gives says whether the edit is there: later edits may have undone it, and the first token may have
been learned and not the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from posttrain.editing.editors._base import EditorConfig
from posttrain.editing.edits import Edit, Form
from posttrain.errors import Problem
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent

__all__ = ["Said", "answers_to", "conflicts", "form_of", "said_already"]

ANSWER_TOKENS = 32
"""Tokens of an answer, at most; half as many beyond the longest answer that is written, where that is more."""


class Said(NamedTuple):
    """The answers to an edit's prompt.

    before: of the untouched model; now: None if it was not asked since the weights last changed; right: whether
    the answer now says what was written.
    """

    before: str
    now: str | None = None
    right: bool | None = None


def form_of(config: EditorConfig, tokenizer: Any) -> Form:
    """Return how edits of an editor are asked: in the chat template, unless it edits raw prompts alone."""
    chat = bool(tokenizer.chat_template) and (config.forms == "auto" or "chat" in config.forms)
    return "chat" if chat else "raw"


def answers_to(respondent: ModelRespondent, edits: Sequence[Edit], form: Form) -> list[str]:
    """Return the model's answer to each edit's prompt, asked as a user's words or as plain text."""
    if not edits:
        return []
    prompts = [edit.prompt if form == "chat" else Plain(edit.question) for edit in edits]
    wanted = max(len(respondent.tokenizer(edit.answer, add_special_tokens=False)["input_ids"]) for edit in edits)
    found = respondent.answers(prompts, max_new_tokens=max(ANSWER_TOKENS, wanted + ANSWER_TOKENS // 2))
    return [answer.text.strip() for answer in found]


def said_already(edits: Sequence[Edit], answers: Sequence[str]) -> list[Problem]:
    """Return a problem for each edit whose answer the model gives already. answers: those of `answers_to`."""
    mend = "there is nothing to edit: leave the target out"
    return [
        Problem(edit.location, f"the model says '{edit.answer}' already", mend)
        for edit, answer in zip(edits, answers, strict=True)
        if answer.rstrip(".。") == edit.answer.strip().rstrip(".。")
    ]


def conflicts(edits: Sequence[Edit]) -> list[Problem]:
    """Return a problem for each edit whose prompt gets another answer from an edit before it."""
    first: dict[object, Edit] = {}
    problems = []
    for edit in edits:
        other = first.setdefault(edit.prompt, edit)
        if other.answer.strip() != edit.answer.strip():
            where = f" in {other.location}" if other.location else ""
            cause = f"the prompt gets '{edit.answer.strip()}' here and '{other.answer.strip()}'{where}"
            problems.append(Problem(edit.location, cause, "keep one of them: a model says one answer to a question"))
    return problems
