"""Houlsby adapters: a bottleneck behind attention and feed-forward part of every layer. arXiv:1902.00751.

    h' = h + W_up f(W_down h + b_down) + b_up,   d -> m -> d,   2 m d + d + m parameters each

W_up is zero at the start, so that the outputs are exactly those of the original model. Unlike LoRA's update, the change
is not linear and cannot be merged into the model's matrices: every forward pass computes it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.models.added import attach
from posttrain.models.bottleneck import Bottlenecks
from posttrain.registry import register
from posttrain.tuners._parts import norms_of

__all__ = ["AdapterConfig", "adapter"]


class AdapterConfig(Config):
    """Train bottlenecks behind the sub-layers."""

    kind: Literal["adapter"] = "adapter"
    """Houlsby adapters."""
    where: Literal["both", "mlp", "attention"] = "both"
    """Behind which part of a layer: `both` is Houlsby's, `mlp` Pfeiffer's."""
    reduction: int = Field(16, ge=1)
    """The bottleneck is the hidden width over this, at least 1."""
    size: int | None = Field(None, ge=1)
    """Width of the bottleneck itself, in place of `reduction`."""
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    """The function f in the bottleneck."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the bottleneck."""
    norms: bool = False
    """Let the model's normalisation layers move too, as in the paper."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of W_down at the start."""
    modules: list[str] | None = None
    """Put adapters behind the modules whose names end so, where the layers' parts are not found."""
    seed: int = 0
    """Seed of W_down."""


@register("tuner", "adapter", config=AdapterConfig, paper="arXiv:1902.00751")
def adapter(model: PreTrainedModel, config: AdapterConfig) -> PreTrainedModel:
    """Freeze the model, put adapters into it (in place), and return the same model. A new head is trained too.

    Raise PosttrainError, which lists the model's modules, when the parts of the layers are not found.
    """
    settings = config.model_dump(exclude={"kind", "norms"})
    attach(model, Bottlenecks(model, settings), moving=norms_of(model) if config.norms else ())
    return model
