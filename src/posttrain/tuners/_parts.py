"""Find the parts of a model (its norms, head, linear layers) without a list of architectures."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from posttrain.models.notes import HEADS, head_modules


def layer_number(name: str) -> int | None:
    """Return the index of the layer that a parameter or module belongs to: the first number in its name, or None."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(match[1]) if match else None


def is_causal(model: PreTrainedModel) -> bool:
    """Return whether the model's output is a distribution over its vocabulary, not the scores of a new head."""
    return not type(model).__name__.endswith(tuple(ending for ending, _ in HEADS.values()))


def head_of(model: PreTrainedModel) -> list[str]:
    """Return the names of the head's parameters. The head is the output embeddings, or a new head with all other
    modules that were random. A tied output head is the embedding matrix, and has its name.
    """
    if is_causal(model):
        head = model.get_output_embeddings()
        own = {id(p) for p in head.parameters()} if head is not None else set()
        return [name for name, p in model.named_parameters() if id(p) in own]
    new = tuple(f"{name}." for name in head_modules(model))
    return [name for name, _ in model.named_parameters() if name.startswith(new)]


def norms_of(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters of normalisation layers: scales, and biases if there are any."""
    return [
        f"{name}.{part}" if name else part
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for part, _ in module.named_parameters(recurse=False)
    ]


def last_part(name: str) -> str:
    """Return the last part of a name: `bias` of `model.layers.0.self_attn.q_proj.bias`."""
    return name.rpartition(".")[2]


def linear_names(model: PreTrainedModel) -> list[str]:
    """Return the full names of all linear layers except the head. GPT-2's Conv1D counts as a linear layer."""
    from transformers.pytorch_utils import Conv1D

    head = {name.rpartition(".")[0] for name in head_of(model)}
    output = model.get_output_embeddings() if is_causal(model) else None
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and name not in head
    ]


def float_masters(model: PreTrainedModel, names: Iterable[str]) -> PreTrainedModel:
    """Freeze all but the named parameters, and make the named ones float32 (float64 stays), in place. They are float32
    because an AdamW step at learning rate 1e-5 is below bfloat16's spacing for most weights. Return the same model.
    """
    model.requires_grad_(False)
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        if parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return model
