"""A forward pass that begins at a layer and after some tokens, for many rows that share what came before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

__all__ = ["Before", "beginning_at"]


@contextmanager
def beginning_at(block: nn.Module, lower: Sequence[nn.Module], entering: Tensor, *, alone: bool) -> Iterator[None]:
    """Within this block of code, a forward pass begins at a layer: the layers below it do nothing, and it gets the
    hidden states `entering` (B, T, D). alone: the layers return these states alone, not in a tuple.
    """

    def put(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (entering, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": entering}

    def nothing(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if alone else (hidden_states,)

    handle = block.register_forward_pre_hook(put, with_kwargs=True)
    own = [vars(one).get("forward") for one in lower]
    for one in lower:
        vars(one)["forward"] = nothing
    try:
        yield
    finally:
        handle.remove()
        for one, was in zip(lower, own, strict=True):
            del vars(one)["forward"]
            if was is not None:
                vars(one)["forward"] = was


class Before(DynamicLayer):
    """Keys and values (S, H, t, d) of the tokens before. A pass reads them, repeated for each cell, and adds none."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        times = len(key_states) // len(self.keys)
        keys = torch.cat([self.keys.repeat(times, 1, 1, 1), key_states], dim=-2)
        return keys, torch.cat([self.values.repeat(times, 1, 1, 1), value_states], dim=-2)
