"""Decoding for models whose cache cannot be cut and joined: rows of equal length together, no padding, no refilling.

What a model remembers is given back to it unchanged, under the name under which it came. Whether that is right is tried
once per model: RWKV of transformers 5.23, for example, mixes the rows of a batch. A model whose memory is wrong, or
that has none, reads the whole text again for every token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from posttrain.inference.attention import core, numbers_of
from posttrain.inference.kv_cache import is_prompt_learning
from posttrain.inference.protocol import Usage
from posttrain.inference.refill import Answers
from posttrain.models.logits import UNFIT

__all__ = ["Way", "answer_by_length", "way_of"]

MEMORIES = ("past_key_values", "cache_params", "state")
"""Names under which models of transformers return what they remember (attention and hybrids; Mamba, xLSTM; RWKV)."""
TOLERANCE = 1e-3
"""How much logits may differ in float32, as a share of their standard deviation."""
COARSE = 0.1
"""The same in half precision, root mean square."""


class Way(NamedTuple):
    """How to go on after the first token. memory: the name of what the model remembers, None: the whole text is read
    again; together: several rows are read in one forward pass."""

    memory: str | None
    together: bool


_ways: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def way_of(model: Any) -> Way:
    """The cheapest way that gives the logits of whole texts read one by one; tried once."""
    if model not in _ways:
        parameters = inspect.signature(core(model).forward).parameters
        names = [*(name for name in MEMORIES if name in parameters), None]
        ways = [Way(name, together) for name in names for together in (True, False)]
        with torch.inference_mode():
            expected = _trial(model, ways[-1], 1)
            _ways[model] = next(way for way in ways if way is ways[-1] or _agrees(model, way, expected))
    return _ways[model]


def _agrees(model: Any, way: Way, expected: Tensor) -> bool:
    try:
        gap = _trial(model, way, 2 if way.together else 1) - expected
    except torch.OutOfMemoryError:
        raise
    except UNFIT:  # it can not be read so
        return False
    spread = float(expected.std())
    if core(model).dtype in (torch.float32, torch.float64):
        return float(gap.abs().max()) <= TOLERANCE * spread
    return float(gap.square().mean().sqrt()) <= COARSE * spread


def _trial(model: Any, way: Way, rows: int) -> Tensor:
    """Logits (2, 3, V) after 6, 7 and 8 random tokens of two texts, `rows` of them in a forward pass."""
    draw = torch.Generator().manual_seed(0)
    texts = torch.randint(numbers_of(model)["vocab_size"], (2, 8), generator=draw).to(core(model).device)
    found = []
    for first in range(0, len(texts), rows):
        memory: Any = None
        steps = []
        for length in (6, 7, 8):
            logits, memory = _read(model, texts[first : first + rows, :length], way, memory)
            steps.append(logits.float())
        found.append(torch.stack(steps, 1))
    return torch.cat(found)


def _read(model: Any, whole: Tensor, way: Way, memory: Any) -> tuple[Tensor, Any]:
    """Logits (B, V) after texts (B, T), of which `memory` holds all but the last token, and the memory then."""
    parameters = inspect.signature(core(model).forward).parameters
    ids = whole if memory is None else whole[:, -1:]
    given: dict[str, Any] = {"use_cache": way.memory is not None} if "use_cache" in parameters else {}
    if "position_ids" in parameters and not is_prompt_learning(model):  # some hybrids (Bamba) count wrongly without
        given["position_ids"] = torch.arange(whole.shape[1], device=whole.device)[-ids.shape[1] :].expand_as(ids)
    if way.memory is None:
        return model(input_ids=ids, **given).logits[:, -1], None
    if memory is not None:
        given[way.memory] = memory
    # PEFT puts virtual tokens in front whenever it is asked; with a memory that holds them the model itself goes on
    asked = core(model) if memory is not None and is_prompt_learning(model) else model
    out = asked(input_ids=ids, **given)
    return out.logits[:, -1], out[way.memory]


def answer_by_length(
    model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[int], answers: Answers, *, tokens: int, usage: Usage
) -> None:
    """Answer the prompts with these numbers: rows x (length + new tokens) within `tokens`, one row always."""
    if not rows:
        return
    way = way_of(model)
    batch: list[int] = []
    most = 0
    for row in sorted(rows, key=lambda row: (-len(prompts[row]), row)):
        final = len(prompts[row]) + answers.limits[row]
        other = batch and len(prompts[row]) != len(prompts[batch[0]])
        if batch and (other or not way.together or (len(batch) + 1) * max(most, final) > tokens):
            _answer(model, prompts, batch, answers, way, usage)
            batch, most = [], 0
        batch.append(row)
        most = max(most, final)
    _answer(model, prompts, batch, answers, way, usage)


def _answer(
    model: Any, prompts: Sequence[Sequence[int]], numbers: Sequence[int], answers: Answers, way: Way, usage: Usage
) -> None:
    whole = torch.tensor([list(prompts[n]) for n in numbers], device=core(model).device)  # (B, T)
    usage.prompt_tokens += whole.numel()
    memory: Any = None
    alive = [True] * len(numbers)
    while any(alive):
        logits, memory = _read(model, whole, way, memory)
        chosen, alive = answers.next(numbers, alive, logits)
        whole = torch.cat([whole, chosen[:, None]], 1)
