"""Shared by the objectives with classes: names of the labels, and weights of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

__all__ = ["ClassWeights", "Labels", "balanced", "check_labels", "weights_for"]


def _names(value: Any) -> Any:
    """Numbers and truth values as names: YAML's `labels: [0, 1]`."""
    if not isinstance(value, list | tuple):
        return value
    return tuple((str(v).lower() if isinstance(v, bool) else str(v)) if isinstance(v, bool | int) else v for v in value)


Labels = Annotated[tuple[str, ...] | None, BeforeValidator(_names)]
"""Names of the classes, in the order of the outputs."""

ClassWeights = Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]]
"""A weight for each class, or `balanced`: N / (C x rows of the class), as scikit-learn has it."""


def check_labels(labels: tuple[str, ...] | None, weights: object, *, least: int) -> None:
    """ValueError for labels that stand twice, too few of them, or weights of others."""
    if labels is None:
        return
    if len(set(labels)) < len(labels):
        raise ValueError("labels: a name stands twice")
    if len(labels) < least:
        raise ValueError(f"labels: at least {least} are needed")
    others = [name for name in weights if name not in labels] if isinstance(weights, dict) else []
    if others:
        raise ValueError(f"class_weights: '{others[0]}' is none of the labels {', '.join(labels)}")


def balanced(labels: Sequence[str], seen: Iterable[str]) -> dict[str, float]:
    """N / (C n_c) for each class that n_c of the N labels `seen` are; a class that does not occur weighs 1."""
    counts = Counter(seen)
    total, classes = sum(counts.values()), sum(counts[label] > 0 for label in labels)
    return {label: total / (classes * counts[label]) if counts[label] else 1.0 for label in labels}


def weights_for(labels: Sequence[str] | None, weights: str | Mapping[str, float] | None, like: Tensor) -> Tensor | None:
    """The weights in the order of the outputs, (C,), on the device and in the precision of `like`; None without any."""
    if weights is None:
        return None
    assert labels is not None, "labels are resolved before training"
    assert not isinstance(weights, str), "weights are resolved before training"
    return torch.tensor([weights.get(label, 1.0) for label in labels], dtype=like.dtype, device=like.device)
