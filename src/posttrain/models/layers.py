"""Find the layers of a model without a list of architectures."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem

__all__ = ["layers_of"]


def layers_of(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers from the input to the output, `model.layers.0` and so on.

    They are the modules of the first list that has as many modules as the configuration has layers. Raise ConfigError
    for a model without such a list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{name}.{i}" for i in range(count)]
    raise ConfigError(
        Problem("tuner", f"no list of {count} layers is found in {type(model).__name__}", "choose parameters by name")
    )
