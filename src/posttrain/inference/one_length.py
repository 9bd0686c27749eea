"""Decode with models that have no cache to cut and join: rows of equal length together, no padding, no refilling.

The memory that a model returns is passed back to it unchanged, under the same name. A trial checks once per model
whether that is right: RWKV of transformers 5.23, for example, mixes the rows of a batch. A model with a wrong memory,
or with none, reads the whole text again for every token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from posttrain.inference.attention import numbers_of
from posttrain.inference.kv_cache import is_prompt_learning
from posttrain.inference.protocol import Usage
from posttrain.inference.refill import Answers
from posttrain.models.logits import UNFIT, core_of
from posttrain.models.marks import bare

__all__ = ["Way", "answer_by_length", "way_of"]

MEMORIES = ("past_key_values", "cache_params", "state")
"""Names under which models of transformers return their memory (attention and hybrids; Mamba, xLSTM; RWKV)."""
TOLERANCE = 1e-3
"""Largest difference of logits in float32, as a share of their standard deviation."""
COARSE = 0.1
"""The same limit in half precision, for the root mean square of the differences."""


class Way(NamedTuple):
    """How a model reads the tokens after the first one. `memory` is the name of the model's memory; None
    means that the whole text is read again. `together` says that several rows are read in one forward pass.
    """

    memory: str | None
    together: bool


_ways: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def way_of(model: Any) -> Way:
    """Return the cheapest way that gives the logits of whole texts read one by one. Try it once per model."""
    if model not in _ways:
        parameters = inspect.signature(core_of(model).forward).parameters
        names = [*(name for name in MEMORIES if name in parameters), None]
        ways = [Way(name, together) for name in names for together in (True, False)]
        with torch.inference_mode(), bare(model):
            expected = _trial(model, ways[-1], 1)
            _ways[model] = next(way for way in ways if way is ways[-1] or _agrees(model, way, expected))
    return _ways[model]


def _agrees(model: Any, way: Way, expected: Tensor) -> bool:
    try:
        gap = _trial(model, way, 2 if way.together else 1) - expected
    except torch.OutOfMemoryError:
        raise
    except UNFIT:  # the model cannot be read in this way
        return False
    spread = float(expected.std())
    if core_of(model).dtype in (torch.float32, torch.float64):
        return float(gap.abs().max()) <= TOLERANCE * spread
    return float(gap.square().mean().sqrt()) <= COARSE * spread


def _trial(model: Any, way: Way, rows: int) -> Tensor:
    """Return logits (2, 3, V) after 6, 7 and 8 random tokens of two texts, with `rows` of them in a forward pass."""
    draw = torch.Generator().manual_seed(0)
    texts = torch.randint(numbers_of(model)["vocab_size"], (2, 8), generator=draw).to(core_of(model).device)
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
    """Return logits (B, V) after texts (B, T), and the new memory. `memory` holds all but the last token, or
    is None."""
    parameters = inspect.signature(core_of(model).forward).parameters
    ids = whole if memory is None else whole[:, -1:]
    given: dict[str, Any] = {"use_cache": way.memory is not None} if "use_cache" in parameters else {}
    if "position_ids" in parameters and not is_prompt_learning(model):  # without, some hybrids (Bamba) count wrongly
        given["position_ids"] = torch.arange(whole.shape[1], device=whole.device)[-ids.shape[1] :].expand_as(ids)
    if way.memory is None:
        return model(input_ids=ids, **given).logits[:, -1], None
    if memory is not None:
        given[way.memory] = memory
    # PEFT puts virtual tokens before the rows at every call; if a memory holds them, the model itself continues
    asked = core_of(model) if memory is not None and is_prompt_learning(model) else model
    out = asked(input_ids=ids, **given)
    return out.logits[:, -1], out[way.memory]


def answer_by_length(
    model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[int], answers: Answers, *, tokens: int, usage: Usage
) -> None:
    """Answer the prompts with the indices `rows`, in batches with rows x (length + new tokens) <= `tokens`. A
    batch always has at least one row.
    """
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
    whole = torch.tensor([list(prompts[n]) for n in numbers], device=core_of(model).device)  # (B, T)
    usage.prompt_tokens += whole.numel()
    memory: Any = None
    alive = [True] * len(numbers)
    while any(alive):
        logits, memory = _read(model, whole, way, memory)
        chosen, alive = answers.next(numbers, alive, logits)
        whole = torch.cat([whole, chosen[:, None]], 1)
