"""Read rows of compared or graded answers, and make such pairs from a change's targets.

These rows are read. Each has strings or lists of messages:

- `{"prompt": ..., "chosen": ..., "rejected": ...}`, with `margin` (a number) if a reward model will learn it;
- `{"chosen": [...], "rejected": [...]}`, two conversations with the same beginning, which is the prompt;
- `{"prompt": ..., "completion": ..., "label": true}`, where label says whether the answer is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

from posttrain.data.fields import BadRow, check_spelling, keys_of, kind_of, messages_of, text_of, tools_of, words_of
from posttrain.data.records import Conversation, Graded, Message, Preference
from posttrain.data.tokens import shared_length

__all__ = ["FromTargets", "graded_from_targets", "graded_of", "pairs_from_targets", "preference_of"]

RecordT = TypeVar("RecordT")
Turns = tuple[Message, ...]


def preference_of(row: Mapping[str, Any], location: str) -> Preference:
    """Return the record of a row with `chosen` and `rejected`. Raise BadRow, which says what was expected."""
    if row.get("chosen") is None and row.get("rejected") is None:
        cause = f"'chosen' and 'rejected' are expected, two answers to one prompt; the row has {keys_of(row)}"
        raise BadRow(cause, "objective: kto learns from graded answers, sft from conversations and completions")
    check_spelling(row, "", {"margin": lambda value: isinstance(value, int | float)})
    margin = row.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise BadRow(f"'margin' must be a number, got {kind_of(margin)}")
    if margin is not None and not math.isfinite(margin):
        raise BadRow("'margin' must be finite")
    given, plain = _prompt(row)
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    if given is not None:
        # some data sets repeat the prompt at the beginning of both conversations
        prompt, chosen, rejected = given, _without(given, chosen, "chosen"), _without(given, rejected, "rejected")
    else:
        prompt, chosen, rejected = _shared(row, chosen, rejected)
    if _stripped(chosen) == _stripped(rejected):
        raise BadRow("'chosen' and 'rejected' are equal: nothing to prefer", "remove the row")
    plain = plain and isinstance(row["chosen"], str) and isinstance(row["rejected"], str)
    margin = None if margin is None else float(margin)
    both = _learned(chosen, "chosen"), _learned(rejected, "rejected")
    return Preference(prompt, *both, location, tools_of(row), margin, plain)


def graded_of(row: Mapping[str, Any], location: str) -> Graded:
    """Return the record of a row with `completion` and `label`. Raise BadRow, which says what was expected."""
    if "completion" not in row or row.get("label") is None:
        cause = f"'completion' and 'label' (true or false) are expected; the row has {keys_of(row)}"
        mend = 'add "label": true or false' if "completion" in row else "objective: dpo or orpo learn from preferences"
        raise BadRow(cause, mend)
    label = row.get("label")
    if not isinstance(label, bool):
        raise BadRow(f"'label' must be true (wanted) or false, got {kind_of(label)}", "write true or false")
    prompt, plain = _prompt(row)
    if prompt is None:
        raise BadRow("'prompt' is missing", 'add "prompt": "..."')
    answer = _learned(_without(prompt, _answer(row, "completion"), "completion"), "completion")
    return Graded(prompt, answer, label, location, tools_of(row), plain and isinstance(row["completion"], str))


def _prompt(row: Mapping[str, Any]) -> tuple[Turns | None, bool]:
    """Return the prompt (None if missing), its assistant turns not learned, and whether it was a string."""
    value = row.get("prompt")
    if value is None:
        return None, False
    if isinstance(value, list):
        return tuple(_unlearned(m) for m in messages_of(value, "prompt")), False
    text = text_of(row, "prompt")
    if not text.strip():
        raise BadRow("'prompt' is empty", "write the prompt or remove the row")
    return (Message("user", text),), True


def _answer(row: Mapping[str, Any], field: str) -> Turns:
    value = row.get(field)
    if isinstance(value, list):
        return messages_of(value, field)
    if value is None:
        raise BadRow(f"'{field}' is missing", f'add "{field}": "..."')
    return (Message("assistant", words_of(row, field, "write the answer or remove the row")),)


def _without(prompt: Turns, answer: Turns, field: str) -> Turns:
    """Return the answer without the prompt, if it repeats it. Raise BadRow when no assistant turn follows."""
    if tuple(map(_unlearned, answer[: len(prompt)])) == prompt:
        answer = answer[len(prompt) :]
        if not answer:
            raise BadRow(f"'{field}' is the prompt alone: no answer", "add the assistant's message")
    if answer[0].role != "assistant":
        cause = f"'{field}' begins with the {answer[0].role}'s turn, which is not that of 'prompt'"
        raise BadRow(cause, "both answers must be to the same prompt")
    return answer


def _shared(row: Mapping[str, Any], chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Split two whole conversations into the prompt, which is their common beginning, and both answers. Raise BadRow
    when they have no common beginning, or no assistant turn follows it."""
    if not (isinstance(row["chosen"], list) and isinstance(row["rejected"], list)):
        raise BadRow("'prompt' is missing", 'add "prompt": "...", or write both as lists of messages, prompt included')
    if _stripped(chosen) == _stripped(rejected):
        raise BadRow("'chosen' and 'rejected' are equal: nothing to prefer", "remove the row")
    same = shared_length(chosen, rejected)
    if same == 0:
        raise BadRow("'chosen' and 'rejected' do not share a prompt", 'add "prompt": ..., or begin both with it')
    for field, turns in (("chosen", chosen[same:]), ("rejected", rejected[same:])):
        if not turns:
            raise BadRow(f"'{field}' ends where the other goes on: no answer to compare", "remove the row")
        if turns[0].role != "assistant":
            cause = f"'chosen' and 'rejected' do not share a prompt: they part at turn {same}, the {turns[0].role}'s"
            raise BadRow(cause, "both answers must be to the same prompt")
    return tuple(map(_unlearned, chosen[:same])), chosen[same:], rejected[same:]


def _learned(answer: Turns, field: str) -> Turns:
    """Return the answer as it is. Raise BadRow when its last turn is not the assistant's."""
    if answer[-1].role != "assistant":
        raise BadRow(f"the last turn of '{field}' is the {answer[-1].role}'s", "end it with the assistant's answer")
    return answer


def _unlearned(message: Message) -> Message:
    return replace(message, train=False) if message.role == "assistant" else message


def _stripped(turns: Turns) -> list[tuple[Any, ...]]:
    """Return the parts of an answer that are compared, without white space around the content."""
    return [(m.role, m.content.strip(), m.reasoning, m.tool_calls) for m in turns]


class FromTargets(NamedTuple, Generic[RecordT]):
    """The records made from targets. skipped: how many targets were left out, because the model's answer is empty or
    equal to the target's."""

    records: list[RecordT]
    skipped: int


def pairs_from_targets(targets: Sequence[Conversation], before_answers: Sequence[str]) -> FromTargets[Preference]:
    """Return a preference of each target's answer (its last turn) over the present answer of the unchanged model. A
    target is skipped when the present answer is equal or empty. before_answers: one per target, in order.
    """
    pairs = []
    for target, before in zip(targets, before_answers, strict=True):
        *asked, wanted = target.messages
        if before.strip() and before.strip() != wanted.content.strip():
            rejected = (Message("assistant", before.strip()),)
            prompt = tuple(map(_unlearned, asked))
            pairs.append(Preference(prompt, (wanted,), rejected, target.location, target.tools))
    return FromTargets(pairs, len(targets) - len(pairs))


def graded_from_targets(targets: Sequence[Conversation], before_answers: Sequence[str]) -> FromTargets[Graded]:
    """Return each pair as two graded answers: the target's answer is wanted, the present answer is unwanted."""
    pairs = pairs_from_targets(targets, before_answers)
    graded = [
        Graded(pair.prompt, answer, label, pair.location, pair.tools)
        for pair in pairs.records
        for answer, label in ((pair.chosen, True), (pair.rejected, False))
    ]
    return FromTargets(graded, pairs.skipped)
