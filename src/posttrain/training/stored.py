"""The precision of a saved model: that of its base, so that it takes as much room as the base.

Training keeps its weights in float32. A base of bfloat16 numbers is saved as bfloat16 again, and the model in memory is
rounded alike, so that the exam examines the saved model. Adapters stay float32; they are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.models.added import added_to
from posttrain.models.tensors import stored_dtype
from posttrain.training.config import SaveDtype, TrainConfig

__all__ = ["rounded_as_saved", "saved_bytes", "unused_dtype"]

ALL: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

WHOLE = ("full", "freeze", "bitfit")
"""Tuners that leave a whole model; the others leave an adapter."""


def unused_dtype(save_dtype: SaveDtype, kind: str) -> str:
    """A sentence where `save_dtype` asks for a precision in which the adapter of this kind of tuner is not saved; else
    empty."""
    if save_dtype in ("auto", "float32") or kind in WHOLE:
        return ""
    return f"save_dtype: {save_dtype} is for whole models: what {kind} leaves is an adapter, saved in float32"


def rounded_as_saved(
    config: TrainConfig, model: PreTrainedModel | PeftModel, say: Callable[[str], None]
) -> torch.dtype | None:
    """Round the numbers of a model in place to the precision that it is saved in, and return it; None saves those in
    memory."""
    if isinstance(model, PeftModel) or added_to(model) is not None:
        return None
    auto = config.save_dtype == "auto"
    named = _named(config)
    if named is None or all(p.dtype == ALL[named] for p in model.parameters()):
        return None
    dtype = ALL[named]
    if dtype == torch.float32:
        return None if auto else dtype
    largest = torch.finfo(dtype).max
    if any(bool((p.detach().abs() > largest).any()) for p in model.parameters()):
        say(f"the model has numbers that {named} cannot hold: it is saved as it is")
        return None
    far, size = _round(model, dtype)
    lost = f"rounding moves the weights by {far / max(size, 1e-30):.1e} of their size"
    if auto:
        say(f"saved in {named}, as its base is ({config.model}): {lost}; save_dtype: float32 keeps every bit")
    else:
        say(f"saved in {named}, as save_dtype says: {lost}")
    return dtype


def saved_bytes(config: TrainConfig, model: PreTrainedModel | PeftModel) -> int:
    """About the size of the result's weights: of an adapter the moving parameters, of a model all of them as they are
    saved."""
    if isinstance(model, PeftModel) or added_to(model) is not None:
        return 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    named = _named(config)
    return ALL[named or "float32"].itemsize * sum(p.numel() for p in model.parameters())


def _named(config: TrainConfig) -> str | None:
    """The precision that the settings or the base's files name; None where neither does."""
    if config.save_dtype != "auto":
        return config.save_dtype
    return stored_dtype(config.model, offline=not config.download, trust_remote_code=config.trust_remote_code)


@torch.no_grad()
def _round(model: Any, dtype: torch.dtype) -> tuple[float, float]:
    """Round in place; returns how far the weights moved, and how large they are (root of the sum of squares)."""
    far = size = 0.0
    for p in model.parameters():
        rounded = p.to(dtype).to(p.dtype)
        far += float((rounded - p).double().square().sum())
        size += float(p.double().square().sum())
        p.copy_(rounded)
    return far**0.5, size**0.5
