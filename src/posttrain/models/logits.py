"""Return logits at given positions from any causal model, also one inside a wrapper.

Rows are padded on the right and attention is causal, so no token sees padding and no mask is needed. Only the given
positions pass through the output head. The outputs of virtual tokens that PEFT puts before a row are left out.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.models.adapters import virtual_columns

__all__ = ["UNFIT", "core_of", "keeps_logits", "logits_at", "raised"]

UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError)
"""Errors that a model's code raises when it is called with arguments that it does not support. A trial treats them as
"not supported". Running out of memory is not treated so, and is raised.
"""


def core_of(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT or distributed wrapper."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


@lru_cache(maxsize=32)
def keeps_logits(kind: type[nn.Module]) -> bool:
    """Return whether a model takes `logits_to_keep`. Causal models of transformers 5 do; a model with its own code may
    not.
    """
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def logits_at(model: nn.Module, input_ids: Tensor, columns: Tensor | None) -> Tensor:
    """Return logits (B, K, V) at the positions `columns` (K,), or at all positions (B, T, V) if `columns` is None.
    `input_ids` is (B, T), right-padded, on the model's device.
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


def raised(logits: Tensor) -> Tensor:
    """Return logits in float32, unless they are float64."""
    return logits if logits.dtype == torch.float64 else logits.float()
