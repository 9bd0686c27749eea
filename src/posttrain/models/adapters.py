"""Handle what PEFT's own saving does not cover.

This is: virtual tokens in front of rows, weights that PiSSA has moved, parameters of which PEFT saves only the result,
and the check that an adapter folder fits its base.

PiSSA takes the largest singular directions out of a layer's matrix, W = W' + s B_0 A_0, and trains A, B from A_0, B_0.
The update of the original matrix, W + s (B A - B_0 A_0), is saved as one LoRA of twice the rank, which works with the
unchanged base (PEFT's `subtract_mutated_init` needs a second folder for it).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.p_tuning import PromptEncoderConfig
from peft.tuners.prefix_tuning import PrefixTuningConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import PosttrainError, Problem, TrainingError

__all__ = [
    "TRAINING_STATE",
    "keep_pissa_start",
    "make_base_fit",
    "misfits",
    "plain_lora",
    "save_peft",
    "set_peft_state",
    "training_state",
    "virtual_columns",
    "virtual_positions",
]

TRAINING_STATE = "training_state.safetensors"
"""File in an adapter folder that holds the parameters as they are trained, so that training can continue. It is written
only where the adapter's own file holds their result instead.
"""
START_A, START_B = "posttrain_pissa_a", "posttrain_pissa_b"
ADAPTER = "default"
ROUNDING = 1e-2
"""Relative difference allowed between a base's matrix and its copy, which may be in half precision."""


def plain_lora(layer: nn.Module) -> bool:
    """Return whether a module is LoRA without variants, dropout or bias, on an ordinary linear layer."""
    if not isinstance(layer, Linear) or len(layer.active_adapters) != 1 or layer.merged:
        return False
    name = layer.active_adapters[0]
    return (
        name in layer.lora_A
        and type(layer.base_layer) is nn.Linear
        and not layer.base_layer.weight.requires_grad
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def _prompt_config(model: nn.Module) -> Any | None:
    """Return the configuration of the virtual tokens that a PEFT model puts before rows; None if there are none."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if not isinstance(inner, PeftModel) or not inner.active_peft_config.is_prompt_learning:
        return None
    return inner.active_peft_config if inner.has_active_enabled_adapter else None


def virtual_positions(model: nn.Module) -> int:
    """Return how many positions of the model are taken by the virtual tokens in front of every row."""
    config = _prompt_config(model)
    return 0 if config is None else int(config.num_virtual_tokens)


def virtual_columns(model: nn.Module) -> int:
    """Return how many outputs of a row belong to virtual tokens: embeddings have outputs, prefixes have none."""
    config = _prompt_config(model)
    return 0 if config is None or isinstance(config, PrefixTuningConfig) else int(config.num_virtual_tokens)


def _pissa_layers(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer) and START_A in m._buffers]


def moves_base(model: nn.Module) -> bool:
    """Return whether a PEFT model's own matrices differ from the base's (PiSSA). If so, switching the adapter off does
    not give the base.
    """
    return bool(_pissa_layers(model))


def keep_pissa_start(model: PeftModel) -> None:
    """Store A_0 and B_0 in the layers. Call it directly after the layers are made."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            module.register_buffer(START_A, module.lora_A[ADAPTER].weight.detach().clone(), persistent=False)
            module.register_buffer(START_B, module.lora_B[ADAPTER].weight.detach().clone(), persistent=False)


def save_peft(model: PeftModel, folder: Path) -> None:
    """Write the adapter folder, and the training state if it is needed. A PiSSA adapter is written as an update of its
    original base.
    """
    # "auto" would ask the hub whether the vocabulary grew; posttrain never resizes it without a request.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    if (state := training_state(model)) is not None:
        save_file(state, folder / TRAINING_STATE)
    if not moves_base(model):
        return
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, layer in _pissa_layers(model):
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        tensors[a] = torch.cat([tensors[a], layer.get_buffer(START_A)], 0)  # (2r, in)
        tensors[b] = torch.cat([tensors[b], -layer.get_buffer(START_B)], 1)  # (out, 2r)
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / "adapter_model.safetensors")
    config: Any = copy.deepcopy(model.peft_config[ADAPTER])
    config.init_lora_weights = True
    config.inference_mode = True
    config.r *= 2
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # the same scale at twice the rank
    config.save_pretrained(folder)


def training_state(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the trained parameters by name where an adapter folder holds only their result; else return None. The
    result is an encoder's output or PiSSA's difference. Training cannot continue from it.
    """
    if not isinstance(model, PeftModel) or not _hides_its_parameters(model):
        return None
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _hides_its_parameters(model: PeftModel) -> bool:
    config = model.active_peft_config
    encoded = isinstance(config, PromptEncoderConfig) or (
        isinstance(config, PrefixTuningConfig) and config.prefix_projection
    )
    return (encoded and not config.inference_mode) or moves_base(model)


def set_peft_state(model: PeftModel, folder: Path) -> None:
    """Load an adapter folder's weights into a model that will be trained. Raise TrainingError for another adapter's
    weights (PEFT would load a part of them), and for a folder without the parameters of the encoder or of PiSSA.
    """
    if _hides_its_parameters(model):
        path = folder / TRAINING_STATE
        if not path.is_file():
            what = "an adapter folder of this kind holds what its parameters lead to, not the parameters"
            raise TrainingError(Problem(str(folder), what, f"take one with {TRAINING_STATE}, as posttrain writes it"))
        stored = load_file(path)
        moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        wrong = differences(stored, moving)
    else:
        stored, moving = load_peft_weights(str(folder), device="cpu"), {}
        wrong = misfits(model, stored)
    if wrong:
        raise TrainingError(Problem(str(folder), f"not this adapter's weights: {wrong[:3]}"))
    with torch.no_grad():
        for name, parameter in moving.items():
            parameter.copy_(stored[name])
    if not moving:
        set_peft_model_state_dict(model, stored)


class _Held(NamedTuple):
    """A copy of one of the base's matrices in an adapter folder. `frozen` is True if the copy was not trained."""

    what: str
    matrix: Tensor
    frozen: bool


def make_base_fit(model: PreTrainedModel, folder: Path, base: str, saved: Mapping[str, Any]) -> None:
    """Resize the base's vocabulary to that of the adapter folder. Call it before the adapter is put into the base.

    `saved` is the content of adapter_config.json. Raise PosttrainError if the vocabulary is larger and the folder lacks
    its embeddings, or if the folder holds the matrices of another base.
    """
    stored = load_peft_weights(str(folder), device="cpu")
    own: Any = model
    own_modules = {"embedding": own.get_input_embeddings(), "output head": own.get_output_embeddings()}
    names = {id(m): n for n, m in model.named_modules()}
    trained = saved.get("modules_to_save") or []
    held = [
        each
        for what, module in own_modules.items()
        if module is not None
        for each in _held(stored, what, names[id(module)], module.weight.shape[1], trained)
    ]
    rows = {len(each.matrix) for each in held}
    if not rows:
        return
    size, has = max(rows), int(own.get_input_embeddings().weight.shape[0])
    if len(rows) > 1:
        mend = "save the adapter again"
        raise PosttrainError(Problem(str(folder), f"holds matrices of {sorted(rows)} tokens for one vocabulary", mend))
    tied = own_modules["output head"] is None or own_modules["output head"].weight is own_modules["embedding"].weight
    lacking = [what for what in own_modules if what not in {each.what for each in held}]
    if size > has and lacking and not tied:
        cause = (
            f"was trained on {size} tokens, its base '{base}' has {has}, "
            f"and the new rows of the {lacking[0]} are not in it"
        )
        raise PosttrainError(Problem(str(folder), cause, "save it again with PEFT's save_embedding_layers=True"))
    moved = tied and any(not each.frozen for each in held)  # one matrix has two names, and one of the copies is trained
    for each in held:
        if each.frozen and not moved and not _the_same(each.matrix, own_modules[each.what].weight):
            other = f"the adapter was trained on another base than '{base}': it holds another {each.what}"
            mend = "put the model it was trained on where adapter_config.json says (base_model_name_or_path)"
            raise PosttrainError(Problem(str(folder), other, mend))
    if size != has:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(size, mean_resizing=False)


def _held(stored: Mapping[str, Tensor], what: str, name: str, width: int, trained: list[str]) -> list[_Held]:
    """Return the copies of a base's matrix in an adapter: `lm_head.weight`, `lm_head.base_layer.weight` and so on."""
    pattern = re.compile(rf"(?:base_model\.model\.)?{re.escape(name)}((?:\.(?!lora_)\w+)*)\.weight")
    whole = any(f".{name}".endswith(f".{module}") for module in trained)
    found = []
    for key, tensor in stored.items():
        match = pattern.fullmatch(key)
        if match is not None and tensor.dim() == 2 and tensor.shape[1] == width:
            frozen = match[1].endswith((".base_layer", ".original_module")) or (not match[1] and not whole)
            found.append(_Held(what, tensor, frozen))
    return found


def _the_same(matrix: Tensor, own: Tensor) -> bool:
    """Return whether two matrices have equal numbers, up to rounding, in the rows that both have."""
    rows = min(len(matrix), len(own))
    one, other = matrix[:rows].float(), own[:rows].detach().float().cpu()
    return torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING * float(other.square().mean().sqrt()))


def misfits(model: PeftModel, stored: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that the model or the adapter lacks.

    PEFT ignores tensors of the adapter that the model lacks, and leaves the model's tensors random that the adapter
    lacks. Tensors of the base count as known. A tensor that PEFT also writes a second time, under a name that it does
    not read, is not named.
    """
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = differences(stored, own)
    if not wrong or set(own) - set(stored) or any(name in own for name in wrong):
        return wrong
    result = set_peft_model_state_dict(model, dict(stored))  # load once more: the result names the unknown tensors
    return [name for name in sorted(result.unexpected_keys) if not _twice(name, stored)]


def _twice(name: str, stored: Mapping[str, Tensor]) -> bool:
    """Return whether another of the adapter's tensors has the same numbers."""
    if name not in stored or not any(f".{part}." in name for part in ("modules_to_save", "token_adapter")):
        return False
    return any(
        other != name and tensor.shape == stored[name].shape and torch.equal(tensor, stored[name])
        for other, tensor in stored.items()
    )


def differences(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Return the names that only one of the two has, and the names of tensors with different shapes."""
    return sorted(set(one) ^ set(other)) + [n for n, t in one.items() if n in other and other[n].shape != t.shape]
