"""Adapters that use layers of their base several times (`layer_replication` of LoRA).

PEFT builds the longer model of layers that share their weights and says in the configuration how many there are. What
the configuration says of each layer, and what a folder of the merged model needs, is done here.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftModel
from torch import nn

from posttrain.models.tying import shared_parameters

__all__ = ["own_layers", "replication_of", "say_layers"]

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Lists in configurations with one entry for each layer."""


def replication_of(model: PeftModel) -> list[tuple[int, int]]:
    """From which layer to before which the base's layers follow each other; empty of other adapters."""
    config = model.active_peft_config
    return list(config.layer_replication or []) if isinstance(config, LoraConfig) else []


def say_layers(model: PeftModel) -> None:
    """Say of each layer in the configuration what is said of the base's layer it repeats; call once."""
    config: Any = model.get_base_model().config.get_text_config()
    order = [layer for start, end in replication_of(model) for layer in range(start, end)]
    for key in PER_LAYER:
        if order and (said := config.to_dict().get(key)):
            setattr(config, key, [said[layer] for layer in order])


def own_layers(core: Any) -> None:
    """Give each layer weights of its own, as safetensors stores them; the embedding's matrix stays as it is."""
    ends = {core.get_input_embeddings(), core.get_output_embeddings()}
    for places in shared_parameters(core):
        if any(module in ends for module, _ in places):
            continue
        for module, name in places[1:]:
            own = module._parameters[name]
            assert own is not None
            module._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
