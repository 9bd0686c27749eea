"""Compute the last layer's feed-forward part only where logits are requested.

Only the output head reads what the last layer makes of a token. So its feed-forward part needs only the requested
tokens, which are most often a small share. A trial finds out whether a model allows that (`inference/support.py`).
Attention over a line does the same (`inference/flat.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["feeding_only", "indices", "last_feed_forward"]

NAMES = ("mlp", "feed_forward", "ffn")
"""Names that models give to a layer's feed-forward part."""


def last_feed_forward(model: nn.Module) -> nn.Module | None:
    """Return the feed-forward module of the last layer; None if no module list has one."""
    found: nn.Module | None = None
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            parts = dict(module[-1].named_children())
            found = next((parts[name] for name in NAMES if name in parts), found)
    return found


def indices(index: Tensor, width: int, states: Tensor) -> Tensor:
    """Turn flat indices of rows (B, width) into those of states (B, T, H), which may start with virtual tokens."""
    index, wide = index.to(states.device), states.shape[1]
    return index // width * wide + wide - width + index % width


@contextmanager
def feeding_only(model: nn.Module, index: Tensor, width: int) -> Iterator[None]:
    """Within this block, the last feed-forward part gets only the flat indices `index` of rows (B, width).

    For other tokens it returns zeros. The forward pass raises ValueError if the model's feed-forward part takes or
    returns more than hidden states.
    """
    part = last_feed_forward(model)
    if part is None:
        yield
        return
    shape: list[torch.Size] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            raise ValueError("a feed-forward part that takes more than hidden states")
        shape[:] = [args[0].shape]
        return (args[0].flatten(0, 1)[indices(index, width, args[0])][None],)

    def after(_: nn.Module, __: tuple[Any, ...], out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise ValueError("a feed-forward part that gives more than hidden states")
        whole = out.new_zeros(*shape[0][:2], out.shape[-1])
        whole.flatten(0, 1)[indices(index, width, whole)] = out[0]
        return whole

    with part.register_forward_pre_hook(before), part.register_forward_hook(after):
        yield
