"""P-Tuning v2: trainable keys and values in front of every layer's own. Liu et al. 2021, arXiv:2110.07602.

    attention of layer l:  softmax(q [K_l; k]^T) [V_l; v],   K_l, V_l: (heads, P, head width), from a table (P, W)

This follows the code of the ChatGLM family (`models/prefix.py`): prefix keys are not rotated and take no positions, the
table is N(0, 1) at the start, and there is dropout. An optional projection is trained with the table and kept, so that
training can continue. A prefix changes the model from the start: even a prefix of zeros takes a share of the attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.models.added import attach
from posttrain.models.prefix import Prefix
from posttrain.models.prefix_files import from_file
from posttrain.registry import register

__all__ = ["PtuningV2Config", "ptuning_v2", "settings_of"]


class PtuningV2Config(Config):
    """Train a prefix of keys and values in every layer."""

    kind: Literal["ptuning_v2"] = "ptuning_v2"
    """P-Tuning v2."""
    tokens: int = Field(128, ge=1)
    """Virtual tokens P in front of every row, in every layer."""
    projection: Literal["none", "v1", "v2"] = "none"
    """A network that makes the table: `v1` (ChatGLM-6B) from embeddings of the projection's size, `v2` (ChatGLM2 and 3)
    from embeddings as wide as the table."""
    projection_size: int | None = Field(None, ge=1)
    """Width of the network's hidden layer; the model's hidden size when not given."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the prefix's keys and values, of each row of a batch its own."""
    init_scale: float = Field(1.0, ge=0)
    """Keys and values at the start are so many times the original's N(0, 1)."""
    init: Path | None = None
    """A prefix to start from: a file of the original's (`pytorch_model.bin`, `.safetensors`) or a folder of ours. It
    decides `tokens` and `projection`."""
    seed: int = 0
    """Seed of the start."""


@register("tuner", "ptuning_v2", config=PtuningV2Config, paper="arXiv:2110.07602")
def ptuning_v2(model: PreTrainedModel, config: PtuningV2Config) -> PreTrainedModel:
    """Freeze the model, put a prefix into it (in place), and return the same model. A new head is trained too.

    Raise PosttrainError for a model that takes no prefix, and for a file that does not fit.
    """
    settings = settings_of(config, model.config.get_text_config().hidden_size)
    if config.init is None:
        attach(model, Prefix(model, settings))
        return model
    attach(model, from_file(model, config.init, settings, fixed=config.model_fields_set))
    return model


def settings_of(config: PtuningV2Config, hidden_size: int) -> dict[str, Any]:
    """Return the settings of a Prefix. hidden_size: of the model."""
    settings = config.model_dump(exclude={"kind", "init"})
    return settings | {"projection_size": config.projection_size or hidden_size}
