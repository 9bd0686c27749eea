"""Generate answers of the model before training for replay: all prompts in one call, with bounded memory and progress.

An answer that reaches the limit is cut there and kept as a row without an end sign: its words are the model's own, only
its end is not known. Without such answers only short ones would be replayed, and the model would learn to answer
briefly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from posttrain.data.records import Conversation
from posttrain.errors import Problem
from posttrain.inference.attention import numbers_of
from posttrain.inference.decode import Decoded, decode
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.models.meter import Meter
from posttrain.retention.selection import NoAnswers, ReplayContext, cached, conversation

CACHE_BYTES = 320 * 2**20
"""Maximum bytes of the keys and values of the answers in progress. They are copied part by part when rows leave the
batch and others join it.
"""
BROKEN = "\ufffd"
"""The character that replaces a character that was cut in the middle."""


def cached_tokens(model: Any, size: int = CACHE_BYTES) -> int:
    """Return the number of tokens for which `size` bytes can hold the keys and values:

        size / (layers x 2 x heads of keys x width of a head x bytes per number)
    """  # fmt: skip
    numbers = numbers_of(model)
    heads = numbers.get("num_attention_heads") or numbers.get("n_head") or 1
    hidden = numbers.get("hidden_size") or numbers.get("n_embd") or 1
    layers = numbers.get("num_hidden_layers") or numbers.get("n_layer") or 1
    width = (numbers.get("num_key_value_heads") or heads) * (numbers.get("head_dim") or hidden // heads)
    number_bytes = next(model.parameters()).element_size()
    return max(int(size // (layers * 2 * width * number_bytes)), 1)


def bounded(respondent: ModelRespondent) -> ModelRespondent:
    """Return the same respondent, with a batch size that the limit of bytes allows."""
    tokens = min(respondent.batch_tokens, cached_tokens(respondent.model))
    loaded = LoadedModel(respondent.model, respondent.tokenizer, respondent.name)
    return ModelRespondent(loaded, system_prefix=respondent.system_prefix, batch_tokens=tokens)


def written(
    respondent: ModelRespondent, prompts: Sequence[list[int]], meter: Meter, *, stop: Iterable[int] = (), **how: Any
) -> list[Decoded]:
    """Generate continuations of prompts of token ids. stop: further ids that end a text; how: options of `decode`."""
    with meter:
        return decode(
            respondent.model,
            prompts,
            stop=respondent.stop_ids.union(stop),
            pad_id=respondent.pad_id,
            batch_tokens=respondent.batch_tokens,
            on_done=meter.piece,
            on_token=meter.token,
            **how,
        )


def answered_once(prompts: list[str], context: ReplayContext, max_new_tokens: int) -> list[Conversation]:
    """Return the result of `answered`, read from disk if the same model has answered these prompts before."""
    fingerprint = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    settings = {"kind": "self", "prompts": fingerprint, "max_new_tokens": max_new_tokens}
    return cached(context, settings, lambda: answered(prompts, context, max_new_tokens))


def answered(prompts: list[str], context: ReplayContext, max_new_tokens: int) -> list[Conversation]:
    """Return greedy answers of the model. Cut answers are kept without an end sign, and empty answers are left out.
    `say` reports how many of both there are. Raise NoAnswers if all answers are empty.
    """
    count = len(prompts)
    with Meter("answering prompts for replay", count, "prompts", most_tokens=count * max_new_tokens) as meter:
        respondent = bounded(context.respondent)
        answers = respondent.answers(prompts, max_new_tokens=max_new_tokens, on_answer=meter.piece)
    kept, cut = [], 0
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        text = answer.text if answer.ended else answer.text.rstrip(BROKEN).rstrip()
        if text:
            kept.append(conversation(prompt, text, f"replay:{i}", ended=answer.ended))
            cut += not answer.ended
    empty = len(prompts) - len(kept)
    context.say(
        f"replay: {len(prompts)} prompts answered, {sum(a.tokens for a in answers) / max(len(answers), 1):.1f} tokens "
        f"long on average; {cut} of {len(prompts)} answers were cut at {max_new_tokens} tokens; they are kept without "
        f"an end sign" + (f"; {empty} are empty and left out" if empty else "")
    )
    if not kept:
        cause = f"no answer to {len(prompts)} prompts is of use: all are empty"
        raise NoAnswers(Problem(context.respondent.name, cause, f"raise max_new_tokens above {max_new_tokens}"))
    return kept
