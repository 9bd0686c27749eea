"""Rows on which a penalty asks the model what matters to it: given conversations, or the model's own answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import torch

from posttrain.data.chat import IGNORED, Encoded, encode_all
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Conversation
from posttrain.errors import DataError, Interrupted, PosttrainError, Problem
from posttrain.inference.decode import context_limit
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.curvature import Example
from posttrain.retention.penalty._base import PenaltyContext
from posttrain.retention.replay._answers import answered, answered_once
from posttrain.retention.selection import (
    ReplayContext,
    conversations_in,
    packaged_prompts,
    read_prompts,
    select,
)

__all__ = ["examples_of", "own_answers", "rows_of"]

T = TypeVar("T")

MAX_NEW_TOKENS = 128
"""The longest own answer, as in `replay: self`, so that both find the same answers in the cache."""


def rows_of(data: DataSource | None, count: int, context: PenaltyContext) -> list[Encoded]:
    """`count` rows that show what the model can do where it starts: of `data`, else its own answers."""
    if data is None:
        with context.untouched():
            return own_answers(count, context, context.respondent, context.fingerprint)
    source = data.at(context.base)
    name = source.path or str(source.hub)
    talks, strange = conversations_in(read_records(source).records)
    if strange:
        mend = "give conversations, or prompts with completions"
        raise DataError(*(Problem(one, "not a conversation", mend) for one in strange[:20]))
    selection = select(talks, context.forbidden, name)
    context.say(f"{name}: {selection}")
    return _encoded(_drawn(selection.conversations, count, context.seed), context)


def own_answers(
    count: int, context: PenaltyContext, respondent: ModelRespondent, fingerprint: str | None
) -> list[Encoded]:
    """The respondent's greedy answers to packaged prompts, cached where it has a fingerprint."""
    packaged = [prompt.text for prompt in read_prompts(packaged_prompts(context.loaded.tokenizer))]
    prompts = _drawn(list(dict.fromkeys(packaged)), count, context.seed)
    asking = ReplayContext(
        respondent,
        fingerprint or "",
        seed=context.seed,
        forbidden=context.forbidden,
        cache=context.cache,
        say=context.say,
    )
    try:
        made = (answered_once if fingerprint is not None else answered)(prompts, asking, MAX_NEW_TOKENS)
        return _encoded(select(made, context.forbidden, "the packaged prompts").conversations, context)
    except Interrupted:
        raise
    except PosttrainError as error:
        cause = "own answers cannot show what shall be kept"
        mend = "give data: a file of conversations; or hold_start: false"
        raise DataError(*error.problems, Problem("penalty", cause, mend)) from error


def _drawn(items: Sequence[T], count: int, seed: int) -> list[T]:
    return random.Random(f"rows {seed}").sample(items, count) if count < len(items) else list(items)


def _encoded(conversations: Sequence[Conversation], context: PenaltyContext) -> list[Encoded]:
    loaded = context.loaded
    limit = min(context_limit(loaded.model), context.batch_tokens)
    found = encode_all(conversations, loaded.tokenizer, max_length=limit, over_long="drop", on_bad_row="skip")
    left_out = found.dropped + len(found.problems)
    if left_out:
        context.say(f"{left_out} of {len(conversations)} rows are longer than {limit} tokens or bad, and left out")
    return found.rows


def examples_of(rows: Sequence[Encoded]) -> list[Example]:
    """Rows as tensors: position t is asked for token t + 1 where that one is supervised."""
    made = []
    for row in rows:
        ids, targets = torch.tensor(row.input_ids[:-1]), torch.tensor(row.labels[1:])
        positions = (targets != IGNORED).nonzero()[:, 0]
        made.append(Example(ids, positions, targets[positions]))
    return made
