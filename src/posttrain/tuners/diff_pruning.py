"""Diff pruning: learn a change of all weights that is sparse. Guo, Rush & Kim 2020, arXiv:2012.07463.

    w' = w + z v,   loss + l0 * (expected share of gates z that are open),   then the largest `share` of |z v| stays

Every weight has a value v and a hard concrete gate z (`models/pruned.py`), so training takes more than three times the
model's memory. The result is saved as an adapter of indices and values, which can be merged.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.models.added import attach
from posttrain.models.pruned import PrunedChange
from posttrain.registry import register

__all__ = ["DiffPruningConfig", "diff_pruning"]


class DiffPruningConfig(Config):
    """Train a change of all weights with gates, and keep the largest."""

    kind: Literal["diff_pruning"] = "diff_pruning"
    """Diff pruning."""
    share: float = Field(0.005, gt=0, le=1)
    """Of the model's parameters, those that are changed at the end."""
    l0: float = Field(1.0, ge=0)
    """Weight of the expected share of open gates beside the loss in nats per token."""
    gate_rate: float = Field(100.0, gt=0)
    """The gates' log-odds move so many times as fast as the values."""
    seed: int = 0
    """Decides nothing in training; gates are drawn from the training's own random state."""


@register("tuner", "diff_pruning", config=DiffPruningConfig, paper="arXiv:2012.07463")
def diff_pruning(model: PreTrainedModel, config: DiffPruningConfig) -> PreTrainedModel:
    """Freeze the model, put gated changes into it (in place), and return the same model. A new head is trained too.

    The trainer calls the added part when training is over (`training/run.py`); then the change is cut to `share`.
    """
    attach(model, PrunedChange(model, config.model_dump(exclude={"kind"})))
    return model
