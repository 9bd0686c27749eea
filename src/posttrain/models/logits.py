"""Logits at given positions, from any causal model, also inside a wrapper.

Rows are padded on the right and attention is causal, so no token sees padding and no mask is needed. Only the given
positions go through the output head. The outputs of virtual tokens that PEFT puts in front of a row are left out.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.models.adapters import virtual_columns

__all__ = ["UNFIT", "core_of", "keeps_logits", "logits_at"]

UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError)
"""What a model's code raises when it is called with arguments that it does not support. A trial takes it as "no";
running out of memory is not part of it and is raised."""


def core_of(model: nn.Module) -> Any:
    """The transformers model within a PEFT or distributed wrapper."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


@lru_cache(maxsize=32)
def keeps_logits(kind: type[nn.Module]) -> bool:
    """Whether a model takes `logits_to_keep`: causal models of transformers 5 do, a model with its own code may not."""
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def logits_at(model: nn.Module, input_ids: Tensor, columns: Tensor | None) -> Tensor:
    """Logits (B, K, V) at the positions `columns` (K,), or at all of them.

    input_ids: (B, T), right-padded, on the model's device.
    """
    options: dict[str, Any] = {}
    extra = virtual_columns(model)
    if extra:
        own = torch.arange(input_ids.shape[1], device=input_ids.device) if columns is None else columns
        columns = own + extra
    keeps = columns is not None and keeps_logits(core_of(model).__class__)
    if keeps:
        options["logits_to_keep"] = columns
    logits: Tensor = model(input_ids=input_ids, use_cache=False, **options).logits
    return logits[:, columns] if columns is not None and not keeps else logits
