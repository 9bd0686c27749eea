"""Prefix tuning: trainable keys and values in front of every layer's own, by PEFT. Li and Liang 2021, arXiv:2101.00190.

    attention of layer l:  softmax(q [K_l; k]^T) [V_l; v],   K_l, V_l: (heads, P, head width)

This is the same idea as `ptuning_v2`, which follows the ChatGLM family's code. Here the prefix takes P of the model's
positions, so that a row's own tokens begin at position P. Its values start as N(0, 1) without dropout. The projection
is not in the adapter folder (a checkpoint keeps it, so that training can continue). In a layer with a sliding window,
tokens see the prefix only as far as the window reaches.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from peft import PeftModel, PrefixTuningConfig
from pydantic import Field
from transformers import PreTrainedModel

from posttrain.registry import register
from posttrain.tuners._peft import put_in
from posttrain.tuners._virtual import VirtualTokens

__all__ = ["PrefixConfig", "prefix_tuning"]


class PrefixConfig(VirtualTokens):
    """Train keys and values in front of every layer's own."""

    kind: Literal["prefix_tuning"] = "prefix_tuning"
    """Prefix tuning, as PEFT has it."""
    recomputable: ClassVar[bool] = False

    projection: bool = False
    """Make the prefix from embeddings by two linear layers with tanh between; better with few rows (section 4.3)."""
    projection_size: int | None = Field(None, ge=1)
    """Width between the two; the model's hidden size when left out."""
    zero: bool = False
    """Begin with keys and values of 0, not N(0, 1). They still take a share of the attention."""


@register("tuner", "prefix_tuning", config=PrefixConfig, paper="arXiv:2101.00190")
def prefix_tuning(model: PreTrainedModel, config: PrefixConfig) -> PeftModel:
    """Freeze the model, put a prefix before the keys and values of every layer, and return the PEFT model.

    The model itself is not changed. Raise ConfigError for models that take no cache of keys and values.
    """
    adapter = PrefixTuningConfig(
        num_virtual_tokens=config.tokens,
        prefix_projection=config.projection,
        encoder_hidden_size=config.projection_size or model.config.get_text_config().hidden_size,
        init_weights="zero" if config.zero else None,
    )
    return put_in(model, adapter, seed=config.seed)
