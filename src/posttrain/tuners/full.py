"""Full fine-tuning: every parameter moves, in float32.

Small updates vanish in half precision (an AdamW step at learning rate 1e-5 is below bfloat16's spacing for most
weights), so the weights being trained are float32 whatever the model was stored in; `precision: bf16` lowers the
arithmetic of the forward pass, not these masters.
"""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.registry import register

__all__ = ["FullConfig", "full"]


class FullConfig(Config):
    """Train all parameters."""

    kind: Literal["full"] = "full"
    """Every parameter moves."""


@register("tuner", "full", config=FullConfig)
def full(model: PreTrainedModel, config: FullConfig) -> PreTrainedModel:
    """Make every parameter trainable and float32 (float64 stays), in place; return the same model."""
    if any(p.dtype.itemsize < 4 for p in model.parameters()):
        model.float()
    model.requires_grad_(True)
    return model
