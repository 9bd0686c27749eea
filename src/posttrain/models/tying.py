"""Matrices that modules share: the embedding's is also the output head's in most small models, and an adapter may use
layers of its base several times (`layer_replication` of LoRA).

For such an adapter PEFT builds the longer model, whose repeated layers share weights, and sets the number of layers in
the configuration. This module does the rest: the configuration's lists with an entry for each layer, and copies for a
merged model.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

__all__ = ["is_tied", "own_layers", "replication_of", "say_layers", "set_tied", "untie"]

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Keys of configurations whose lists have one entry for each layer."""


def _shared_parameters(core: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """For each parameter that several modules own: the modules, and its name in each."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in core.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((module, name))
    return [each for each in owners.values() if len(each) > 1]


def _copy(owners: list[tuple[nn.Module, str]]) -> None:
    """Give each of these modules a copy of the parameter, except the first, which keeps it."""
    for module, name in owners[1:]:
        own = module.get_parameter(name)
        module._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)


def untie(core: nn.Module) -> None:
    """Copy each shared parameter that an adapter touches, so that every module owns a copy."""
    wrappers = [m for m in core.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    touched = {inner for wrapper in wrappers for inner in wrapper.modules()}
    for owners in _shared_parameters(core):
        if any(module in touched for module, _ in owners):
            _copy(owners)


def is_tied(core: Any) -> bool:
    """Whether the configuration says that the output head shares the embedding's matrix."""
    return bool(core.config.get_text_config().tie_word_embeddings)


def set_tied(core: Any, tied: bool) -> None:
    """Say in the configuration whether the output head shares the embedding's matrix."""
    core.config.tie_word_embeddings = tied
    core.config.get_text_config().tie_word_embeddings = tied


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
    for owners in _shared_parameters(core):
        if not any(module in ends for module, _ in owners):
            _copy(owners)
