"""Load prefixes from files of the ChatGLM family's code into a model, and remove their projection.

Such a file has `transformer.prefix_encoder.embedding.weight`, alone (P, W), or with the projection `trans.0.*` and
`trans.2.*`; the widths show which projection it is. Pickled files are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, MissingError, PosttrainError, Problem
from posttrain.models.added import added_to, attach, load_added
from posttrain.models.load import LoadedModel, Source, load_model
from posttrain.models.prefix import Prefix

__all__ = ["from_file", "prefix_model", "read_prefix"]

FILES = ("adapter_model.safetensors", "model.safetensors", "pytorch_model.bin")
"""Files that are searched for in a folder, in this order."""
PARTS = ("embedding.weight", "trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")


def read_prefix(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a prefix from a file or folder, in float32.

    They are `embedding.weight` and, with a projection, `trans.0.weight` and so on. Raise MissingError if there is no
    file, and PosttrainError for one that cannot be read or has no prefix.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path
    if path.is_dir():
        file = next((path / name for name in FILES if (path / name).is_file()), path / FILES[-1])
    if not file.is_file():
        raise MissingError(Problem(str(file), "no such file", "give a prefix's .bin or .safetensors, or its folder"))
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        cause = f"cannot be read as tensors: {str(error).splitlines()[0]}"
        raise PosttrainError(Problem(str(file), cause, "copy the file again")) from error
    tensors: dict[str, Tensor] = {}
    others = []
    for name, tensor in found.items() if isinstance(found, dict) else ():
        part = next((part for part in PARTS if name in (part, f"posttrain_added.{part}")), None)
        part = part or next((part for part in PARTS if name.endswith(f"prefix_encoder.{part}")), None)
        if part is None or not isinstance(tensor, Tensor):
            others.append(str(name))
        else:
            tensors[part] = tensor.float()
    if set(tensors) not in ({PARTS[0]}, set(PARTS)):
        has = f"it has {', '.join([*tensors, *others][:4])}" if found else "it is empty"
        mend = "a prefix is prefix_encoder.embedding.weight, or with trans.*"
        raise PosttrainError(Problem(str(file), f"holds no prefix: {has}", mend))
    return tensors


def from_file(
    model: PreTrainedModel, path: Path, settings: Mapping[str, Any], *, fixed: Collection[str] = ()
) -> Prefix:
    """Return a prefix with the file's tensors. `fixed` names settings that must equal those of the file. Raise
    PosttrainError if they or the shapes differ.
    """
    tensors = read_prefix(path)
    tokens, width = tensors["embedding.weight"].shape
    decided = {"tokens": tokens, "projection": "none"}
    if len(tensors) > 1:
        decided["projection"] = "v2" if width == tensors["trans.2.weight"].shape[0] else "v1"
        decided["projection_size"] = tensors["trans.0.weight"].shape[0]
    wrong: list[Problem] = []
    for name, value in decided.items():
        if name in fixed and settings[name] != value:
            cause = f"{name} is {value} in the file and {settings[name]} in the configuration"
            wrong.append(Problem(str(path), cause, f"leave {name} out"))
    if wrong:
        raise PosttrainError(*wrong)
    prefix = Prefix(model, {**settings, **decided})
    expected = prefix.to_save()
    mend = f"layers x 2 x key heads x head width is {prefix.width} here: use the prefix with its own base"
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            cause = f"{name} is {tuple(tensor.shape)}, this model takes {tuple(expected[name].shape)}"
            wrong.append(Problem(str(path), cause, mend))
    if wrong:
        raise PosttrainError(*wrong)
    prefix.load_state_dict(tensors)
    return prefix


def prefix_model(
    path: Path, base: str | None, settings: Mapping[str, Any], *, flatten: bool, **how: Unpack[Source]
) -> LoadedModel:
    """Return a base with the prefix of a file of ChatGLM's code, or of an adapter folder.

    `base` is the base's name; None takes the one that an adapter folder names. `settings` are for a file, which has
    none. With `flatten`, the projection is replaced by its result. Raise ConfigError if a file is given without a base,
    and if an adapter folder would only be copied.
    """
    at = path / "adapter_config.json"
    found = json.loads(at.read_text(encoding="utf-8")) if at.is_file() else {}
    config = found if found.get("posttrain_tuner") == Prefix.kind else None
    if config is not None and not flatten:
        raise ConfigError(Problem(str(path), "is an adapter of posttrain already", "--flatten drops its projection"))
    if config is None and base is None:
        raise ConfigError(Problem(str(path), "does not say which base it is for", "give --base MODEL"))
    loaded = load_model(str(path) if base is None else base, adapter_merged=base is not None, **how)
    if config is None:
        attach(loaded.model, from_file(loaded.model, path, settings))
    elif base is not None:
        load_added(loaded.model, path, config)
    prefix = added_to(loaded.model)
    assert isinstance(prefix, Prefix)
    if flatten:
        prefix.flatten()
    return loaded
