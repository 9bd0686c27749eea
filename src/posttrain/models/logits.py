"""Logits at the positions that are asked, from any causal model, whatever wraps it.

Rows are padded on the right and attention is causal, so no token sees padding and no mask is needed; positions whose
output nobody asks for are not sent through the output head. Virtual tokens that PEFT puts in front of a row have
outputs of their own, which are left out.
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
"""What code of any architecture raises when it is called in a way that it was not written for: in a trial that is the
answer "not this way", which becomes the stated reason. Running out of memory is none of it and is raised.
"""


def core_of(model: nn.Module) -> Any:
    """The transformers model within a PEFT or distributed wrapper."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


@lru_cache(maxsize=32)
def keeps_logits(kind: type[nn.Module]) -> bool:
    """Every causal model of transformers 5 has `logits_to_keep`; a model with code of its own may not."""
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
