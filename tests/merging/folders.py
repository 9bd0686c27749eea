"""Model folders of a few random tensors, without a model's code, and their merges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.merging.plan import Plan, plan
from posttrain.merging.terms import open_term
from posttrain.merging.write import write_merge

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (40, 8),
    "model.layers.0.mlp.up_proj.weight": (24, 8),
    "model.layers.0.norm.weight": (8,),
    "model.layers.1.mlp.up_proj.weight": (24, 8),
    "model.layers.1.conv.weight": (6, 2, 3),
    "model.norm.weight": (8,),
    "lm_head.weight": (40, 8),
}
"""Of the tensors of a model."""


def drawn(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return random tensors of a model."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in SHAPES.items()}


def folder(path: Path, tensors: Mapping[str, Tensor] | int = 0, **config: Any) -> Path:
    """Write tensors, or random ones of a seed, as a model folder, and return it."""
    path.mkdir(parents=True)
    save_file(
        dict(drawn(tensors) if isinstance(tensors, int) else tensors), path / "model.safetensors", {"format": "pt"}
    )
    told = {"model_type": "toy", "tie_word_embeddings": False, **config}
    (path / "config.json").write_text(json.dumps(told), encoding="utf-8")
    return path


def planned(config: Any, folders: Mapping[str, Path], *, base: str | None = None, **how: Any) -> Plan:
    """Return the plan of a merge of folders."""
    return plan(config, {name: open_term(str(path)) for name, path in folders.items()}, base=base, **how)


def written(made: Plan, output: Path, **how: Any) -> Path:
    """Write a planned merge without a word."""
    say: Callable[[str], None] = how.pop("say", lambda line: None)
    return write_merge(made, output, recipe={}, say=say, **how)


def weights(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder."""
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def contents(path: Path) -> dict[str, bytes]:
    """Return the files of a folder, hidden ones, too."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
