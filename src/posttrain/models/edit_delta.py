"""What edits have added to weights, in the order in which it was added; kept small, so that it can be taken back.

A delta belongs to one matrix: two thin matrices for an editor that solves, or a whole one for an editor that trains. A
weight is always computed in the same way, from the untouched weight and the deltas in order, so that undoing, loading
and editing again give the same bits:

    W <- round(float64(W) + float64(left) float64(right))

The factors are float32, in memory as on disk. A folder of deltas is an adapter folder: adapter_config.json with
`posttrain_tuner: edit`, adapter_model.safetensors with the factors, edits.jsonl with what was edited, and
posttrain.json with the fingerprint of the base. It loads as a model anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from posttrain.config.json_text import parse_json
from posttrain.errors import PosttrainError, Problem
from posttrain.models.names import resolve
from posttrain.models.notes import EDIT_KIND

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "EDITS",
    "Delta",
    "LowRank",
    "added",
    "apply_deltas",
    "lora_tensors",
    "read_deltas",
    "read_edits",
    "write_deltas",
    "write_lora",
]

EDITS = "edits.jsonl"
"""What was edited: one row for each edit."""
WEIGHTS = "adapter_model.safetensors"


class LowRank(NamedTuple):
    """A change of a matrix: left (D, r) times right (r, d)."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class Delta:
    """A change of one matrix W (D, d).

    weight: the parameter's name; transposed: it is stored as (d, D); change: low rank, or a whole matrix (D, d), in
    float32 on the CPU; owners: for each column of a low-rank change, the number of the edit that it belongs to.
    """

    weight: str
    transposed: bool
    change: LowRank | Tensor
    owners: tuple[int, ...] = ()

    @staticmethod
    def of(weight: str, transposed: bool, change: LowRank | Tensor, owners: Sequence[int]) -> Delta:
        """Return a change as a delta, in float32 on the CPU."""
        if isinstance(change, Tensor):
            return Delta(weight, transposed, _kept(change), tuple(owners))
        return Delta(weight, transposed, LowRank(*map(_kept, change)), tuple(owners))

    @property
    def rank(self) -> int | None:
        """The number of columns, None for a whole matrix."""
        return None if isinstance(self.change, Tensor) else self.change.left.shape[1]

    def without(self, edits: frozenset[int]) -> Delta | None:
        """Return the delta without the columns of some edits; None if nothing is left. A whole matrix stays as long as
        one of its edits does."""
        if isinstance(self.change, Tensor):
            return None if edits.issuperset(self.owners) else self
        keep = [i for i, owner in enumerate(self.owners) if owner not in edits]
        if not keep:
            return None
        change = LowRank(self.change.left[:, keep].contiguous(), self.change.right[keep].contiguous())
        return Delta(self.weight, self.transposed, change, tuple(self.owners[i] for i in keep))


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()


@torch.no_grad()
def added(weight: Tensor, delta: Delta) -> Tensor:
    """Return a stored weight with a delta added, in the weight's shape, dtype and on its device."""
    change = delta.change
    if isinstance(change, Tensor):
        whole = change.to(weight.device).double()
    else:
        whole = change.left.to(weight.device).double() @ change.right.to(weight.device).double()
    return (weight.double() + (whole.T if delta.transposed else whole)).to(weight.dtype)


def write_deltas(
    folder: Path, base: str, deltas: Sequence[Delta], edits: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Write the files of a folder of deltas, except posttrain.json and the tokenizer. edits: the rows of edits.jsonl;
    settings: what adapter_config.json says beside them.
    """
    from safetensors.torch import save_file

    from posttrain import __version__

    tensors: dict[str, Tensor] = {}
    places = []
    for number, delta in enumerate(deltas):
        own = {"whole": delta.change} if isinstance(delta.change, Tensor) else delta.change._asdict()
        tensors |= {f"{number:06d}.{name}": tensor for name, tensor in own.items()}
        tensors[f"{number:06d}.owners"] = torch.tensor(delta.owners, dtype=torch.int64)
        places.append({"weight": delta.weight, "transposed": delta.transposed, "rank": delta.rank})
    save_file(tensors, folder / WEIGHTS)
    config = {
        "posttrain_tuner": EDIT_KIND,
        "base_model_name_or_path": base,
        "settings": dict(settings),
        "deltas": places,
        "posttrain": __version__,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8", newline="\n")
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in edits)
    (folder / EDITS).write_text(rows, encoding="utf-8", newline="\n")


def read_deltas(folder: Path) -> list[Delta]:
    """Return the deltas of a folder, in order. Raise PosttrainError that names the file that is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    at = folder / "adapter_config.json"
    try:
        places = parse_json(at.read_text(encoding="utf-8"))["deltas"]
        tensors = load_file(folder / WEIGHTS)
        made = []
        for number, place in enumerate(places):
            own = {name: tensors[f"{number:06d}.{name}"] for name in _names(place["rank"])}
            change = own["whole"] if "whole" in own else LowRank(own["left"], own["right"])
            owners = tuple(own["owners"].tolist())
            made.append(Delta(str(place["weight"]), bool(place["transposed"]), change, owners))
    except (OSError, SafetensorError) as error:
        raise PosttrainError(Problem(str(folder / WEIGHTS), f"cannot be read: {error}", "copy it again")) from error
    except (ValueError, KeyError, TypeError) as error:
        cause = f"does not describe the tensors of {WEIGHTS}: {error}"
        raise PosttrainError(Problem(str(at), cause, "copy the folder again")) from error
    return made


def _names(rank: int | None) -> tuple[str, ...]:
    return ("whole", "owners") if rank is None else ("left", "right", "owners")


def read_edits(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of edits.jsonl. Raise PosttrainError that names the file and line that is damaged."""
    path = folder / EDITS
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = parse_json(line)
            if not isinstance(row, dict):
                raise PosttrainError(Problem(f"{path}:{number}", "is no JSON object", "copy the folder again"))
            rows.append(row)
    except (OSError, ValueError) as error:
        raise PosttrainError(Problem(str(path), f"cannot be read: {error}", "copy the folder again")) from error
    return rows


@torch.no_grad()
def apply_deltas(model: PreTrainedModel, deltas: Sequence[Delta], location: str) -> None:
    """Add deltas to a model's weights, in place and in order. Raise PosttrainError, before anything is changed, if a
    weight is missing, has another shape, or a delta holds numbers that are not finite.
    """
    parameters = dict(model.named_parameters())
    wrong = []
    for delta in deltas:
        change = delta.change
        shape = tuple(change.shape) if isinstance(change, Tensor) else (len(change.left), change.right.shape[1])
        stored = tuple(reversed(shape)) if delta.transposed else shape
        parts = [change] if isinstance(change, Tensor) else [*change]
        if delta.weight not in parameters:
            wrong.append(f"{delta.weight} is missing in the base")
        elif tuple(parameters[delta.weight].shape) != stored:
            wrong.append(f"{delta.weight} is {stored}, the base's {tuple(parameters[delta.weight].shape)}")
        elif not all(bool(torch.isfinite(part).all()) for part in parts):
            wrong.append(f"the change of {delta.weight} holds numbers that are not finite")
    if wrong:
        cause = f"the edits do not fit this base: {'; '.join(dict.fromkeys(wrong[:3]))}"
        raise PosttrainError(Problem(location, cause, "use them with their own base"))
    for delta in deltas:
        weight = parameters[delta.weight]
        weight.copy_(added(weight, delta))


def lora_tensors(deltas: Sequence[Delta]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, for each edited module, B (D, r) and A (r, d) whose product is the sum of its deltas. A whole matrix is
    taken apart by its singular values; those below float32's precision of the largest are left out.
    """
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for delta in deltas:
        left, right = found.setdefault(delta.weight.removesuffix(".weight"), ([], []))
        if isinstance(delta.change, Tensor):
            u, s, v = torch.linalg.svd(delta.change.double(), full_matrices=False)
            keep = s > s[0] * torch.finfo(torch.float32).eps
            keep[0] = True  # of a matrix of zeros one column is left: PEFT knows no rank 0
            left.append((u[:, keep] * s[keep]).float())
            right.append(v[keep].float())
        else:
            left.append(delta.change.left)
            right.append(delta.change.right)
    return {name: (torch.cat(left, dim=1), torch.cat(right)) for name, (left, right) in found.items()}


def write_lora(folder: Path, output: Path) -> dict[str, Tensor]:
    """Write the edits of a folder as a LoRA adapter that plain PEFT loads: adapter_config.json and the weights, of rank
    E for E edits. Return its tensors.

    Each edited module has its own rank, with a scale of 1, so that B A is exactly the sum of its deltas.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    deltas = read_deltas(folder)
    if not deltas:
        cause = "there are no edits to write as an adapter"
        mend = "all were taken back: use the base itself"
        raise PosttrainError(Problem(str(folder), cause, mend))
    config = parse_json((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = Path(resolve(str(config["base_model_name_or_path"])))
    if (base / "adapter_config.json").is_file():
        cause = "the edits lie on an adapter, and PEFT would lay one adapter over the other under one name"
        mend = "take the merged model: without --adapter"
        raise PosttrainError(Problem(str(folder), cause, mend))
    pairs = lora_tensors(deltas)
    ranks = {name: a.shape[0] for name, (_, a) in pairs.items()}
    lora = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules=sorted(pairs),
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        fan_in_fan_out=any(delta.transposed for delta in deltas),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=config["base_model_name_or_path"],
    )
    lora.save_pretrained(str(output))
    tensors = {}
    for name, (left, right) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = right.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = left.contiguous()
    save_file(tensors, output / WEIGHTS, metadata={"format": "pt"})
    return tensors
