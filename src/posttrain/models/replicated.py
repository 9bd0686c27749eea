"""Adapters that use layers of their base several times (`layer_replication` of LoRA).

PEFT builds the longer model, whose repeated layers share weights, and sets the number of layers in the configuration.
This module does the rest: the configuration's lists with an entry for each layer, and copies for a merged model.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftModel
from torch import nn

from posttrain.models.tying import shared_parameters

__all__ = ["own_layers", "replication_of", "say_layers"]

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Keys of configurations whose lists have one entry for each layer."""


def replication_of(model: PeftModel) -> list[tuple[int, int]]:
    """The ranges (first, end) of the base's layers that make the model; empty for other adapters."""
    config = model.active_peft_config
    return list(config.layer_replication or []) if isinstance(config, LoraConfig) else []


def say_layers(model: PeftModel) -> None:
    """Repeat the entries of the configuration's lists as the layers are repeated; call it once."""
    config: Any = model.get_base_model().config.get_text_config()
    order = [layer for start, end in replication_of(model) for layer in range(start, end)]
    for key in PER_LAYER:
        if order and (said := config.to_dict().get(key)):
            setattr(config, key, [said[layer] for layer in order])


def own_layers(core: Any) -> None:
    """Copy shared weights so that each layer owns its own, which safetensors requires; the embedding stays shared."""
    ends = {core.get_input_embeddings(), core.get_output_embeddings()}
    for owners in shared_parameters(core):
        if any(module in ends for module, _ in owners):
            continue
        for module, name in owners[1:]:
            own = module._parameters[name]
            assert own is not None
            module._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
