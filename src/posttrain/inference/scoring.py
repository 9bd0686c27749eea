"""Score given continuations: requests are arranged as a prefix tree, and every shared token is forwarded once.

`score` returns sums and the likeliest token of each position; `distributions` returns whole rows. Both follow the
plan of `inference/tree.py` in a way that the model can read (`inference/attention.py`). `inference/support.py` finds
this way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import PosttrainError, Problem
from posttrain.inference.attention import Reading, Support, numbers_of, read
from posttrain.inference.bins import in_lines
from posttrain.inference.decode import context_limit
from posttrain.inference.locations import listed, location_of
from posttrain.inference.plain import TokenPair
from posttrain.inference.protocol import Scored, Told, Usage, nobody
from posttrain.inference.support import support, taking_masks, warn
from posttrain.inference.tree import Ints, Limits, Tree, in_rows, plan
from posttrain.models.logits import core_of
from posttrain.models.marks import mark_prompts

__all__ = ["LOGITS_BYTES", "distributions", "score"]

LOGITS_BYTES = 1 << 29
"""Largest size in bytes of float32 logits at once; a vocabulary of 150k tokens would otherwise fill the memory."""
SLICE = 1 << 22
"""Number of logits that pass through the softmax at once: small enough for a processor's cache."""
CPU_TOKENS = 2048
"""Largest number of tokens that a CPU reads at once: larger activations leave its caches. Measured on 3 M and 12.5 M
parameters, one thread: 16384 tokens take 5 to 13 % more time.
"""
WORTH = 256
"""Number of tokens that sharing must save before a model's support for it is tried."""

Pairs = Sequence[TokenPair] | Sequence[tuple[Sequence[int], Sequence[int]]]


def score(
    model: Any,
    pairs: Pairs,
    *,
    usage: Usage,
    batch_tokens: int = 16384,
    on_scored: Told = nobody,
    say: Callable[[str], None] = warn,
) -> list[Scored]:
    """Return, for each (context ids, continuation ids), the continuation's log-probability and the likeliest tokens.

    `say` gets, once per model, the reason why the model cannot share, if it cannot. Raise PosttrainError that names all
    pairs that do not fit, and for a model without finite logits.
    """
    scored = [Scored(0.0, 0, 0)] * len(pairs)
    for i, (_, continuation) in enumerate(pairs):
        if not len(continuation):
            on_scored(i, scored[i])
    found: defaultdict[int, dict[int, tuple[float, int]]] = defaultdict(dict)  # pair -> position -> what is there
    for reading in _readings(model, pairs, usage, batch_tokens, say):
        requests, steps = reading.asked.requests.tolist(), reading.asked.steps.tolist()
        targets = [pairs[i][1][t] for i, t in zip(requests, steps, strict=True)]
        nats, likeliest = _of_targets(reading.logits, reading.asked.row, targets)
        for i, step, value, best in zip(requests, steps, nats, likeliest, strict=True):
            found[i][step] = value, best
            if len(found[i]) == len(pairs[i][1]):
                scored[i] = _scored(found.pop(i), pairs[i][1])
                on_scored(i, scored[i])
    return scored


def _scored(found: dict[int, tuple[float, int]], targets: Sequence[int]) -> Scored:
    """Return the score of a continuation from the log-probability in nats and the likeliest token of each position."""
    sum_nats = sum(nats for nats, _ in found.values())
    likeliest = tuple(found[step][1] for step in range(len(targets)))
    hits = sum(best == target for best, target in zip(likeliest, targets, strict=True))
    return Scored(sum_nats, len(targets), hits, likeliest)


@torch.inference_mode()
def _of_targets(logits: Tensor, row: Ints, targets: Sequence[int]) -> tuple[list[float], list[int]]:
    """Return the log-probability in nats of each target in its row of logits (N, V), and the row's likeliest token.
    Raise PosttrainError if logits are not finite."""
    step = max(1, SLICE // logits.shape[-1])
    parts = [part.float() for part in torch.split(logits, step)]
    normal = torch.cat([part.logsumexp(-1) for part in parts])  # (N)
    if bool(torch.isnan(normal).any()):
        raise PosttrainError("the model gives no finite logits: its weights are broken (training may have diverged)")
    best = torch.cat([part.argmax(-1) for part in parts])  # (N)
    at = torch.from_numpy(row).to(logits.device)
    wanted = torch.tensor(targets, dtype=torch.long, device=logits.device)
    nats = logits[at, wanted].float() - normal[at]
    return nats.double().tolist(), best[at].tolist()


def distributions(
    model: Any, pairs: Pairs, *, usage: Usage, batch_tokens: int = 16384, say: Callable[[str], None] = warn
) -> Iterator[tuple[int, Tensor]]:
    """Yield, for each pair, its index and next-token log-probabilities in nats, float32 (A, V), on the model's device.

    Row t is the distribution that predicts the continuation's token t from everything before it. Pairs come in the
    order in which they are finished. Raise PosttrainError that names all pairs that do not fit.
    """
    vocabulary = int(numbers_of(model)["vocab_size"])
    for i, (_, continuation) in enumerate(pairs):
        if not len(continuation):
            yield i, torch.zeros(0, vocabulary, device=core_of(model).device)
    found: defaultdict[int, dict[int, Tensor]] = defaultdict(dict)
    for reading in _readings(model, pairs, usage, batch_tokens, say):
        asked = reading.asked
        for i, t, row in zip(asked.requests.tolist(), asked.steps.tolist(), asked.row.tolist(), strict=True):
            found[i][t] = torch.log_softmax(reading.logits[row].float(), -1)
            if len(found[i]) == len(pairs[i][1]):
                rows = found.pop(i)
                yield i, torch.stack([rows[step] for step in range(len(rows))])


def _readings(
    model: Any, pairs: Pairs, usage: Usage, batch_tokens: int, say: Callable[[str], None]
) -> Iterator[Reading]:
    """Plan the forward passes, run them, and count their cost in `usage`."""
    _check(pairs, context_limit(model))
    usage.requests += len(pairs)
    contexts = mark_prompts(model, [context for context, _ in pairs])
    marked = [(context, continuation) for context, (_, continuation) in zip(contexts, pairs, strict=True)]
    tree = Tree(marked)
    usage.least_tokens += tree.least_tokens
    if not tree.rows:
        return
    with taking_masks(model, say):
        can = Support("plain")
        if tree.row_tokens - tree.least_tokens >= WORTH:
            can = support(model, max(tree.deepest), say)
            usage.plain_reason = can.reason if can.kind == "plain" else usage.plain_reason
            usage.plain_requests += sum(tree.ends) if can.kind == "plain" else 0
        if can.kind == "plain":
            tree = Tree(marked, share=False)
        if core_of(model).device.type == "cpu":
            batch_tokens = min(batch_tokens, CPU_TOKENS)
        answers = max(1, LOGITS_BYTES // (4 * int(numbers_of(model)["vocab_size"])))
        limits = Limits(can.kind != "plain", batch_tokens if can.batched else 1, answers)
        real = 0
        steps = plan(tree, limits, in_lines if can.kind == "flat" else in_rows)
        for reading in read(model, tree, steps, can, answers=answers, tokens=batch_tokens):
            usage.scored_tokens += reading.forwarded
            usage.logit_positions += len(reading.logits)
            usage.shared_prefixes += reading.shared
            real += reading.tokens
            yield reading
        usage.shared_tokens += tree.row_tokens - real


def _check(pairs: Pairs, limit: int) -> None:
    problems = [
        Problem(location_of("request", i), "has no token before its continuation")
        if not len(context)
        else Problem(location_of("request", i), f"has {tokens} tokens, the model has {limit} positions", "shorten it")
        for i, (context, continuation) in enumerate(pairs)
        if (tokens := len(context) + max(0, len(continuation) - 1)) > limit or not len(context)
    ]
    if problems:
        raise PosttrainError(*listed(problems, len(pairs)))
