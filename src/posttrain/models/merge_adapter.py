"""Merge a PEFT adapter into its base's weights, and change nothing else.

PEFT adds the update of a tied model's output head to the matrix that it shares with the embedding, so every token's
embedding changes too; PEFT only warns. Here a shared matrix that the adapter touches is copied first. If both copies
are equal afterwards they are shared again; otherwise the configuration states that they are no longer tied. For every
kind of adapter, the merged model must give the outputs of the adapter on its base.

Some adapters use layers of their base several times (`layer_replication` of LoRA). For them PEFT builds the longer
model, in which repeated layers share weights, and sets the number of layers in the configuration. Here the
configuration's lists get an entry for each layer (`say_layers`), and a merged model's layers get their own weights.
"""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import PosttrainError, Problem
from posttrain.models.added import at_rest
from posttrain.models.logits import UNFIT
from posttrain.models.marks import whole_prompts

__all__ = [
    "COARSE",
    "TOLERANCE",
    "is_tied",
    "merge_peft",
    "relative_distance",
    "say_layers",
    "some_logits",
    "was_untied",
]

PROBED = 16
"""Number of tokens in the row that outputs are compared on."""
TOLERANCE = 1e-3
"""Largest difference of outputs in float32 (root mean square over their standard deviation): merging rounds once."""
COARSE = 5e-2
"""The same limit in half precision."""
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Keys of configurations that hold lists with one entry for each layer."""


def merge_peft(model: PeftModel, location: str) -> PreTrainedModel:
    """Return the base with the adapter in its weights. The PEFT model must not be used afterwards.

    `location` is what an error names. Raise PosttrainError for a kind that cannot be merged, and if the merged model
    would give other outputs.
    """
    core: Any = model.get_base_model()
    kind = str(model.active_peft_config.peft_type).rpartition(".")[2]
    beside = "use it beside its base"
    if model.active_peft_config.is_prompt_learning:
        cause = f"{kind} cannot be merged into its base: it is no change of weights"
        raise PosttrainError(Problem(location, cause, beside))
    was_tied = is_tied(core)
    repeats = _replication_of(model)
    expected = some_logits(model)
    _untie(core)
    try:
        with warnings.catch_warnings():
            # PEFT warns about the tied matrix, but it has just been copied
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            warnings.filterwarnings("ignore", message=".*no longer tied.*")
            merged = model.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:
        split = str(error).split("\n")[0] or "PEFT has no way to do it"
        cause = f"{kind} cannot be merged into its base: {split}"
        raise PosttrainError(Problem(location, cause, beside)) from error
    left = [name for name, m in merged.named_modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if left:
        cause = f"PEFT leaves parts of this {kind} adapter in {left[0]}, so it cannot be merged into its base"
        raise PosttrainError(Problem(location, cause, beside))
    if repeats:
        _own_layers(merged)
    if was_tied:
        _tie_again(merged)
    far = relative_distance(some_logits(merged), expected)
    if not far <= (TOLERANCE if merged.dtype == torch.float32 else COARSE):
        cause = f"merged into its base it is another model: outputs differ by {far:.1%} of their spread"
        raise PosttrainError(Problem(location, cause, beside))
    return merged


def relative_distance(found: Tensor | None, expected: Tensor | None) -> float:
    """Return the root mean square of the difference, divided by the standard deviation of `expected`. Return 0 if one
    of the tensors is None.
    """
    if found is None or expected is None:
        return 0.0
    found, expected = found.double(), expected.double()
    spread = float(expected.std())
    return float((found - expected).square().mean().sqrt()) / max(spread, 1e-12)


@torch.no_grad()
def some_logits(model: Any) -> Tensor | None:
    """Return the first output for a few tokens, in eval mode. Return None for a model without weights, and for one that
    needs more than token ids.
    """
    core = model.get_base_model() if isinstance(model, PeftModel) else model
    embedding = core.get_input_embeddings()
    if core.device.type == "meta":
        return None
    ids = torch.linspace(0, embedding.weight.shape[0] - 1, PROBED, device=core.device).long()[None]
    try:
        with at_rest(model), whole_prompts(model):
            return model(input_ids=ids, attention_mask=torch.ones_like(ids))[0].float().cpu()
    except UNFIT:
        return None


def _tie_again(core: Any) -> None:
    """Share the matrix again if both copies are equal; else state in the configuration that they are not tied."""
    head, embedding = core.get_output_embeddings(), core.get_input_embeddings()
    if head is None or head.weight is embedding.weight:
        _set_tied(core, True)
        return
    same = torch.equal(head.weight, embedding.weight)
    if same:
        head.weight = embedding.weight
    else:
        _untied.add(core)
    _set_tied(core, same)


_untied: WeakSet[PreTrainedModel] = WeakSet()


def was_untied(model: PreTrainedModel) -> bool:
    """Return whether merging an adapter into the model has split a tied matrix into two."""
    return model in _untied


def _shared_parameters(core: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Return, for each parameter that several modules own, the modules and its name in each."""
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


def _untie(core: nn.Module) -> None:
    """Copy each shared parameter that an adapter touches, so that every module owns a copy."""
    wrappers = [m for m in core.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    touched = {inner for wrapper in wrappers for inner in wrapper.modules()}
    for owners in _shared_parameters(core):
        if any(module in touched for module, _ in owners):
            _copy(owners)


def is_tied(core: Any) -> bool:
    """Return whether the configuration states that the output head shares the embedding's matrix."""
    return bool(core.config.get_text_config().tie_word_embeddings)


def _set_tied(core: Any, tied: bool) -> None:
    """State in the configuration whether the output head shares the embedding's matrix."""
    core.config.tie_word_embeddings = tied
    core.config.get_text_config().tie_word_embeddings = tied


def _replication_of(model: PeftModel) -> list[tuple[int, int]]:
    """Return the ranges (first, end) of the base's layers that make up the model; empty for other adapters."""
    config = model.active_peft_config
    return list(config.layer_replication or []) if isinstance(config, LoraConfig) else []


def say_layers(model: PeftModel) -> None:
    """Repeat the entries of the configuration's lists as the layers are repeated. Call it once."""
    config: Any = model.get_base_model().config.get_text_config()
    order = [layer for start, end in _replication_of(model) for layer in range(start, end)]
    for key in PER_LAYER:
        if order and (said := config.to_dict().get(key)):
            setattr(config, key, [said[layer] for layer in order])


def _own_layers(core: Any) -> None:
    """Copy shared weights so that each layer has its own, as safetensors requires. The embedding stays shared."""
    ends = {core.get_input_embeddings(), core.get_output_embeddings()}
    for owners in _shared_parameters(core):
        if not any(module in ends for module, _ in owners):
            _copy(owners)
