"""Decoding for models whose cache can not be cut and joined: rows of equal length together, no padding, no refilling.

Nothing is assumed about what the model remembers; it is handed back as it came, under the name it came by. A model
that remembers nothing reads the whole text again for every token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from posttrain.inference.attention import core
from posttrain.inference.protocol import Usage
from posttrain.inference.refill import Answers
from posttrain.inference.sampling import pick

__all__ = ["answer_by_length"]

MEMORIES = ("past_key_values", "cache_params", "state")
"""Names by which models of transformers hand out what they remember (attention and hybrids; Mamba, xLSTM; RWKV)."""


def answer_by_length(
    model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[int], answers: Answers, *, tokens: int, usage: Usage
) -> None:
    """Answer the prompts with these numbers: rows x (length + new tokens) within `tokens`, one row always."""
    batch: list[int] = []
    most = 0
    for row in sorted(rows, key=lambda row: (-len(prompts[row]), row)):
        final = len(prompts[row]) + answers.limits[row]
        other = batch and len(prompts[row]) != len(prompts[batch[0]])
        if batch and (other or (len(batch) + 1) * max(most, final) > tokens):
            _answer(model, prompts, batch, answers, usage)
            batch, most = [], 0
        batch.append(row)
        most = max(most, final)
    if batch:
        _answer(model, prompts, batch, answers, usage)


def _answer(
    model: Any, prompts: Sequence[Sequence[int]], numbers: Sequence[int], answers: Answers, usage: Usage
) -> None:
    inner = core(model)
    whole = torch.tensor([list(prompts[n]) for n in numbers], device=inner.device)  # (B, T)
    usage.prompt_tokens += whole.numel()
    parameters = inspect.signature(inner.forward).parameters
    # virtual tokens are put in front again whenever a PEFT model is asked: it must see the whole text
    known = () if inner is not model and _is_prompt_learning(model) else MEMORIES
    name = next((name for name in known if name in parameters), None)
    memory: Any = None
    alive = [True] * len(numbers)
    while any(alive):
        given: dict[str, Any] = {"use_cache": name is not None} if "use_cache" in parameters else {}
        if name is not None and memory is not None:
            given[name] = memory
        out = model(input_ids=whole if memory is None else whole[:, -1:], **given)
        memory = out[name] if name is not None and name in out else None
        uniforms = [answers.uniform(n) if live else 0.0 for n, live in zip(numbers, alive, strict=True)]
        chosen = pick(out.logits[:, -1], answers.sampling, uniforms)
        alive = [
            live and answers.take(n, token) for n, token, live in zip(numbers, chosen.tolist(), alive, strict=True)
        ]
        whole = torch.cat([whole, chosen[:, None]], 1)


def _is_prompt_learning(model: Any) -> bool:
    return any(config.is_prompt_learning for config in model.peft_config.values())
