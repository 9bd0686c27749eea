"""Whether a PEFT adapter's folder fits its base: all its tensors are used, and no parameter stays random.

An adapter's folder may also hold the base's embedding and output head: PEFT writes them when an adapter wraps them, and
when the vocabulary was resized before training. If it was resized, the base gets that size; other numbers than the
base's mean that the adapter was trained on another model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import PosttrainError, Problem

__all__ = ["differences", "make_base_fit", "misfits"]

ROUNDING = 1e-2
"""Relative difference allowed between a base's matrix and its copy, which may be in half precision."""


class _Held(NamedTuple):
    """A copy of one of the base's matrices in an adapter folder; frozen: it was not trained."""

    what: str
    matrix: Tensor
    frozen: bool


def make_base_fit(model: PreTrainedModel, folder: Path, base: str, saved: Mapping[str, Any]) -> None:
    """Resize the base's vocabulary to that of the adapter folder; call it before the adapter is put in.

    base: its name; saved: adapter_config.json. PosttrainError where the adapter needs a larger vocabulary and does not
    have the embeddings for it, and where the embeddings it has are not those of its base.
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
    moved = tied and any(not each.frozen for each in held)  # one matrix under two names, and one of them is trained
    for each in held:
        if each.frozen and not moved and not _the_same(each.matrix, own_modules[each.what].weight):
            other = f"the adapter was trained on another base than '{base}': it holds another {each.what}"
            mend = "put the model it was trained on where adapter_config.json says (base_model_name_or_path)"
            raise PosttrainError(Problem(str(folder), other, mend))
    if size != has:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(size, mean_resizing=False)


def _held(stored: Mapping[str, Tensor], what: str, name: str, width: int, trained: list[str]) -> list[_Held]:
    """The copies of a base's matrix among an adapter's tensors: `lm_head.weight`, `lm_head.base_layer.weight`, ..."""
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
    """Whether two matrices have equal numbers in the rows that both have, up to rounding."""
    rows = min(len(matrix), len(own))
    one, other = matrix[:rows].float(), own[:rows].detach().float().cpu()
    return torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING * float(other.square().mean().sqrt()))


def misfits(model: PeftModel, stored: Mapping[str, Tensor]) -> list[str]:
    """Names of an adapter's tensors that the model does not have, and of the model's that the adapter does not have.

    PEFT ignores the first and leaves the second random. Tensors of the base count as known; PEFT also writes some
    numbers twice, once under a name that it does not read.
    """
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = differences(stored, own)
    if not wrong or set(own) - set(stored) or any(name in own for name in wrong):
        return wrong
    result = set_peft_model_state_dict(model, dict(stored))  # loaded once more: the result names what is unknown
    return [name for name in sorted(result.unexpected_keys) if not _twice(name, stored)]


def _twice(name: str, stored: Mapping[str, Tensor]) -> bool:
    """Whether a tensor has the same numbers as another of the adapter's."""
    if name not in stored or not any(f".{part}." in name for part in ("modules_to_save", "token_adapter")):
        return False
    return any(
        other != name and tensor.shape == stored[name].shape and torch.equal(tensor, stored[name])
        for other, tensor in stored.items()
    )


def differences(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names that only one of both has, or whose shapes differ."""
    return sorted(set(one) ^ set(other)) + [n for n, t in one.items() if n in other and other[n].shape != t.shape]
