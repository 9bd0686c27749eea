"""Batched decoding on token ids: shared prefixes are read once, with a KV cache and a batch that is refilled.

`refill.py` finds prompts that share a prefix and runs the batch, which gets a new prompt when an answer ends.
`sampling.py` picks the next token, and `texts.py` finds stop strings. A model with a cache that cannot be cut and
joined takes the plain path of `one_length.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import nn

from posttrain.errors import Problem
from posttrain.inference.flat import stepping
from posttrain.inference.kv_cache import why_plain
from posttrain.inference.locations import location_of, refuse
from posttrain.inference.one_length import answer_by_length
from posttrain.inference.protocol import Usage
from posttrain.inference.refill import Answers, RefilledBatch, groups_of
from posttrain.inference.sampling import Sampling
from posttrain.inference.texts import StopWatch
from posttrain.models.adapters import virtual_positions
from posttrain.models.logits import core_of
from posttrain.models.marks import mark_prompts
from posttrain.models.vocabulary import outside, rows_of

__all__ = ["Decoded", "context_limit", "decode", "positions_in_config", "unfit"]


class Decoded(NamedTuple):
    """One answer in token ids, without the stop token. `ended` says that a stop token or a stop string came before the
    limit. Tokens that hold a stop string are kept: `texts.cut_at_stop` cuts the text.
    """

    ids: list[int]
    ended: bool


def context_limit(model: Any) -> int:
    """Return the largest number of tokens in a row: the model's positions minus those of virtual tokens."""
    most = positions_in_config(model.config)
    for name, module in model.named_modules():  # RoBERTa and related models count from the position after the padding's
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            most = min(most, module.num_embeddings - module.padding_idx - 1)
    return most - virtual_positions(model)


def positions_in_config(config: Any) -> int:
    """Return the number of positions that a configuration states; 2^30 if it states none."""
    found = config.get_text_config().to_dict()
    return int(found.get("max_position_embeddings") or found.get("n_positions") or 1 << 30)


def unfit(location: str, length: int, limit: int) -> Problem | None:
    """Return the problem with the length of a prompt for a model with `limit` positions; None if there is none."""
    if 0 < length < limit:
        return None
    if length == 0:
        return Problem(location, "has no tokens")
    return Problem(location, f"has {length} tokens, the model has {limit} positions", "shorten it")


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop: frozenset[int],
    pad_id: int,
    max_new_tokens: int | Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_tokens: int = 16384,
    stop_texts: Sequence[str] = (),
    text_of: Callable[[list[int]], str] | None = None,
    on_done: Callable[[int, Decoded], None] | None = None,
    on_token: Callable[[int, list[int]], None] | None = None,
    usage: Usage | None = None,
) -> list[Decoded]:
    """Return the model's answers to `prompts` (token ids), in the order of the prompts; greedy at temperature 0.

    A sampled answer depends on the seed and on the prompt's index in the list, not on how rows were batched.

    An answer stops at any id of `stop`, as soon as its text (which `text_of` makes of its ids) holds one of
    `stop_texts`, after `max_new_tokens` (one number for all prompts, or one for each), or where the model's positions
    end. `batch_tokens` limits the number of cached tokens at once. `on_done` gets each prompt's index and answer as
    soon as it is known. `on_token` gets the prompt's index and its tokens so far. `usage` counts what was forwarded.
    Raise PosttrainError that names all prompts that do not fit, and for a model without finite logits.
    """
    limit = context_limit(model)
    known = rows_of(model)
    refuse([unfit(location_of("prompt", i), len(ids), limit) for i, ids in enumerate(prompts)], len(prompts))
    refuse([outside(location_of("prompt", i), ids, known) for i, ids in enumerate(prompts)], len(prompts))
    usage = usage if usage is not None else Usage()
    most = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    limits = [min(new, limit - len(p)) for new, p in zip(most, prompts, strict=True)]
    prompts = mark_prompts(model, prompts)
    answers: list[Decoded] = [Decoded([], False)] * len(prompts)

    def done(row: int, ids: list[int], ended: bool) -> None:
        answers[row] = Decoded(ids, ended)
        usage.generated_tokens += len(ids)
        if on_done is not None:
            on_done(row, answers[row])

    usage.requests += len(prompts)
    asked = [row for row in range(len(prompts)) if limits[row] > 0]
    for row in range(len(prompts)):
        if limits[row] <= 0:
            done(row, [], False)
    watches: dict[int, StopWatch] = {}

    def met(row: int, ids: list[int]) -> bool:
        """Call `on_token`, then return whether a row's tokens hold a stop string."""
        if on_token is not None:
            on_token(row, ids)
        return row in watches and watches[row].met(ids)

    if any(stop_texts):
        if text_of is None:
            raise TypeError("stop_texts need text_of: tokens alone do not show them")
        watches = {row: StopWatch(stop_texts, text_of) for row in asked}
    told = Answers(limits, stop, Sampling(temperature, seed, top_p, top_k), met=met, on_done=done)
    reason = why_plain(model, max((len(prompts[row]) + limits[row] for row in asked), default=0))
    if reason:
        usage.plain_requests += len(asked)
        usage.plain_reason = usage.plain_reason or reason
        _say_once(model, f"answers are generated without padding, shared prefixes and refilling: {reason}")
        answer_by_length(model, prompts, asked, told, tokens=batch_tokens, usage=usage)
    else:
        groups = [
            group._replace(rows=[asked[i] for i in group.rows]) for group in groups_of([prompts[i] for i in asked])
        ]
        with stepping(core_of(model)):
            RefilledBatch(model, prompts, told, pad_id=pad_id, tokens=batch_tokens, usage=usage).run(groups)
    return answers


_said: WeakSet[Any] = WeakSet()


def _say_once(model: Any, text: str) -> None:
    if model not in _said:
        _said.add(model)
        warnings.warn(text, stacklevel=3)
