"""The pairs of answers that a steering vector is made from: a change's targets, or a file of rows.

A pair has a prompt, the wanted answer, and what the model says instead. Of a target, and of a row with one answer, that
is the untouched model's present answer. A pair whose two answers say the same has no contrast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from posttrain.config.change import Change
from posttrain.data.records import Completion, Conversation, Message, Preference, Record
from posttrain.errors import DataError, Problem
from posttrain.exams.matching import matches
from posttrain.inference.locations import located
from posttrain.inference.protocol import Spoken
from posttrain.inference.respondents import ModelRespondent
from posttrain.studies.train_rows import PRESENT_TOKENS

__all__ = ["Said", "contrasted", "said_in", "targets_of"]


class Said(NamedTuple):
    """A prompt with the wanted answer and the other one. other: None while it is not known; accepted: answers that say
    the same as the wanted one; location: file and line."""

    prompt: Spoken
    wanted: str
    other: str | None
    location: str
    accepted: tuple[str, ...] = ()


def targets_of(changes: Sequence[Change]) -> list[Said]:
    """Return the targets of changes, each with its first answer as the wanted one."""
    found = []
    for change in changes:
        for number, target in enumerate(change.target):
            asked = target.prompt
            prompt = asked if isinstance(asked, str) else tuple(Message(turn.role, turn.content) for turn in asked)
            location = change.location_of("reliability", number)
            found.append(Said(prompt, target.answer[0], None, location, target.answer))
    return found


def said_in(records: Sequence[Record]) -> list[Said]:
    """Return rows with a positive and a negative answer, or with one answer. Raise DataError with all other rows."""
    found: list[Said] = []
    problems: list[Problem] = []
    for record in records:
        talk = record.as_conversation() if isinstance(record, Completion) else record
        if isinstance(talk, Preference):
            turns, answers = talk.prompt, (talk.chosen, talk.rejected)
        elif isinstance(talk, Conversation):
            turns, answers = talk.messages[:-1], (talk.messages[-1:], (Message("assistant", "-"),))
        else:
            turns, answers = (), ((), ())
        if not turns or any(len(one) != 1 or one[0].role != "assistant" or one[0].tool_calls for one in answers):
            cause = "a prompt with a positive and a negative answer is expected, each of one assistant's turn"
            mend = (
                '{"prompt": ..., "positive": ..., "negative": ...}, or a conversation that ends with the wanted answer'
            )
            problems.append(Problem(record.location, cause, mend))
            continue
        plain = len(turns) == 1 and turns[0].role == "user"
        other = answers[1][0].content if isinstance(talk, Preference) else None
        found.append(Said(turns[0].content if plain else turns, answers[0][0].content, other, record.location))
    if problems:
        raise DataError(*problems)
    return found


def contrasted(pairs: Sequence[Said], before: ModelRespondent, say: Callable[[str], None]) -> list[Said]:
    """Return the pairs with the other answer filled in, without those that have no contrast, which are said. Raise
    DataError, which names their files and lines, if none is left. before: the untouched model.
    """
    open_ = [number for number, pair in enumerate(pairs) if pair.other is None]
    with located(lambda number: pairs[open_[number]].location):
        answers = before.answers([pairs[n].prompt for n in open_], max_new_tokens=PRESENT_TOKENS) if open_ else []
    filled = list(pairs)
    for number, answer in zip(open_, answers, strict=True):
        filled[number] = pairs[number]._replace(other=answer.text.strip())
    kept: list[Said] = []
    problems: list[Problem] = []
    for pair in filled:
        if cause := _no_contrast(pair):
            problems.append(Problem(pair.location, cause, "leave it out: there is nothing to steer to"))
        else:
            kept.append(pair)
    if not kept:
        raise DataError(*problems)
    for problem in problems:
        say(f"left out: {problem}")
    return kept


def _no_contrast(pair: Said) -> str:
    """Return why a pair has no contrast; empty if it has one."""
    other = pair.other or ""
    if not other:
        return "the model says nothing to it, so its present answer cannot be told from the wanted one"
    asked = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1].content
    if other == pair.wanted.strip() or (pair.accepted and matches(other, pair.accepted, prompt=asked)):
        return f"the model says the wanted answer already ({other!r}), so there is no contrast"
    return ""
