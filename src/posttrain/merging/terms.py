"""What a name of a merge stands for: a model's folder, or an adapter's, whose change is added to its base row by row.

    a folder with .safetensors files, pocket:chat, a hub id       its tensors
    a folder of a LoRA adapter (PEFT's or posttrain's)             base + s B A, with the settings of each module
    a folder of edits                                              base + the deltas, in their order

Nothing is loaded as a model, and nothing is written beside: factors are small, and rows are made when they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from posttrain.config.json_text import parse_json
from posttrain.errors import MissingError, PosttrainError, Problem
from posttrain.merging.sources import Source, StoredModel, numbers_of, table_of
from posttrain.merging.values import is_embedding, is_head
from posttrain.models.gguf_header import is_gguf
from posttrain.models.names import resolve
from posttrain.models.notes import EDIT_KIND
from posttrain.models.tensors import Stored

__all__ = ["Term", "open_term"]

EXPORT = "posttrain model export writes it as a whole model, which can be merged"
UNMERGED = (
    *("layer_replication", "trainable_token_indices", "use_qalora", "lora_bias", "alora_invocation_tokens"),
    *("target_parameters", "megatron_config", "use_bdlora", "arrow_config", "monteclora_config", "kasa_config"),
)
"""Settings of LoRA that are more than an added product."""
MOVED = ("pissa", "olora", "corda", "loftq", "lora")  # lora: LoRA-GA
"""Ways to begin that take something out of the base, which PEFT does again when it loads the adapter."""
PART = re.compile(
    r"^base_model\.model\.(?P<module>.+?)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.weight)?$"
)


class Term(NamedTuple):
    """A model that is merged. name: as it was given; path: its folder; folder: that of its configuration (an adapter's
    base's); source: its numbers; parents: other folders that these are read from.
    """

    name: str
    path: Path
    folder: Path
    source: Source
    parents: tuple[Path, ...] = ()


def open_term(name: str, *, offline: bool = True) -> Term:
    """Return a model to merge. Raise MissingError for a model that is not there, and PosttrainError for one whose
    numbers cannot be read as they are: a quantised one, a GGUF file, an adapter that is no sum.
    """
    return _open(name, offline, ())


def _open(name: str, offline: bool, within: tuple[Path, ...]) -> Term:
    folder = Path(resolve(name)).expanduser()
    if is_gguf(folder):
        mend = f"write it as a folder: posttrain model convert {name} DIR"
        raise PosttrainError(Problem(name, "is a GGUF file", mend))
    if not folder.is_dir():
        from posttrain.models.load import hub_folder

        folder = hub_folder(name, offline=offline)
    folder = folder.resolve()
    if folder in within:
        raise PosttrainError(Problem(name, "it is its own base", "name the base's folder in its adapter_config.json"))
    path = folder / "adapter_config.json"
    if path.is_file():
        return _adapted(name, folder, _json(path), offline, (*within, folder))
    config = _json(folder / "config.json")
    if config.get("quantization_config"):
        cause = "its weights are quantised: their numbers cannot be added"
        raise PosttrainError(Problem(name, cause, "load it and save it in bfloat16, or take the model it was made of"))
    _check_shards(folder)
    return Term(name, folder, folder, StoredModel(folder))


def _check_shards(folder: Path) -> None:
    """Raise MissingError for files that the index of the weights names and that are not there."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    found = _json(path).get("weight_map")
    if not isinstance(found, dict):
        raise PosttrainError(Problem(str(path), "does not list the weights' files", "copy it again"))
    if missing := sorted({str(file) for file in found.values() if not (folder / str(file)).is_file()}):
        causes = [f"{file} is missing ({path.name} names it)" for file in missing]
        raise MissingError(*(Problem(str(folder), cause, "copy it, too") for cause in causes))


def _json(path: Path) -> dict[str, Any]:
    try:
        found: Any = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(Problem(str(path.parent), f"no {path.name}: not a model folder", "")) from error
    except ValueError as error:
        raise PosttrainError(Problem(str(path), f"cannot be read: {error}", "copy it again")) from error
    return found if isinstance(found, dict) else {}


def _adapted(name: str, folder: Path, config: Mapping[str, Any], offline: bool, within: tuple[Path, ...]) -> Term:
    from posttrain.models.load import adapter_base

    known = cast("str", adapter_base(folder))
    try:
        base = _open(known, offline, within)
    except MissingError as error:
        mend = "put the base where adapter_config.json says, or change base_model_name_or_path there"
        raise MissingError(Problem(name, f"the adapter's base '{known}' is missing", mend), *error.problems) from error
    parents = (*base.parents, base.path)
    if config.get("posttrain_tuner") == EDIT_KIND:
        return Term(name, folder, base.folder, _edited(name, folder, config, base.source), parents)
    if config.get("peft_type") != "LORA":
        kind = config.get("posttrain_tuner") or config.get("peft_type")
        raise PosttrainError(Problem(name, f"an adapter of kind {kind} is no sum with its base", EXPORT))
    if used := [key for key in UNMERGED if config.get(key)]:
        raise PosttrainError(Problem(name, f"an adapter with {used[0]} is no sum with its base", EXPORT))
    if str(init := config.get("init_lora_weights", True)).partition("_")[0].lower() in MOVED:
        cause = f"an adapter that began with {init} belongs to other weights than its base's"
        raise PosttrainError(Problem(name, cause, EXPORT))
    return Term(name, folder, base.folder, _lora(name, folder, config, base.source), parents)


class Change(NamedTuple):
    """What is added to a tensor, read as a table: left (rows, r) times right (r, columns), or left (rows, columns)
    alone, in float32.

    magnitude: (rows,), of DoRA: the length that each row gets after the sum; exact: computed in float64, as edits are.
    """

    left: Tensor
    right: Tensor | None
    magnitude: Tensor | None = None
    exact: bool = False

    def add(self, first: int, out: Tensor) -> None:
        """Add it to rows (rows, columns) from `first`."""
        left = self.left[first : first + len(out)]
        if self.exact:
            change = left.double() if self.right is None else left.double() @ self.right.double()
            out.copy_(out.double() + change)
        elif self.right is None:
            out.add_(left)
        else:
            out.addmm_(left, self.right)
        if self.magnitude is not None:
            out.mul_((self.magnitude[first : first + len(out)] / out.norm(dim=1)).unsqueeze(1))


class WithChanges:
    """A model with changes of some of its tensors. whole: tensors that are others altogether (`modules_to_save`)."""

    def __init__(self, base: Source, changes: Mapping[str, list[Change]], whole: Mapping[str, Tensor]) -> None:
        self.base, self.changes, self.whole = base, changes, whole
        self._tensors = {
            name: one._replace(shape=tuple(whole[name].shape), start=0) if name in whole else one
            for name, one in base.tensors.items()
        }

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The type and shape of every tensor, by name."""
        return self._tensors

    def rows(self, name: str, first: int, out: Tensor) -> None:
        """Read rows into `out`, as float32."""
        if name in self.whole:
            out.copy_(self.whole[name].view(table_of(self.whole[name].shape))[first : first + len(out)])
        else:
            self.base.rows(name, first, out)
        for change in self.changes.get(name, ()):
            change.add(first, out)

    def raw(self, name: str, first: int, count: int) -> Tensor:
        """Return bytes of a tensor that is not merged; an adapter does not change those."""
        found: Tensor = cast("Any", self.base).raw(name, first, count)
        return found


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def _lora(name: str, folder: Path, config: Mapping[str, Any], base: Source) -> WithChanges:
    """Return a model with PEFT's LoRA on it. Errors name the tensor that does not fit."""
    tensors = _adapter_tensors(name, folder)
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if match := PART.match(key):
            parts.setdefault(match["module"], {})[match["part"]] = tensor.float()
        elif ".original_module." not in key:  # of a grown embedding PEFT saves also what it was before
            module = re.sub(
                r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", key.removeprefix("base_model.model.")
            )
            stored[module] = tensor.float().contiguous()
    tied = not any(map(is_head, base.tensors))
    for module, tensor in stored.items():
        if not (tied and is_head(module) and any(torch.equal(tensor, one) for n, one in stored.items() if n != module)):
            whole[_stored_name(name, base, module)] = tensor
    changes: dict[str, list[Change]] = {}
    for module, own in parts.items():
        at = _stored_name(name, base, f"{module}.weight")
        shape = tuple(whole[at].shape) if at in whole else base.tensors[at].shape
        changes.setdefault(at, []).append(_product(name, at, module, own, config, shape))
    apart = [at for at in whole if any(f".{saved}." in f".{at}" for saved in config.get("modules_to_save") or ())]
    shared = [at for at in (*changes, *apart) if is_embedding(at) and "wpe" not in at and "position" not in at]
    if shared and tied:
        cause = f"it changes {shared[0]}, but not the head, which is the same tensor in its base"
        raise PosttrainError(Problem(name, cause, EXPORT))
    return WithChanges(base, changes, whole)


def _adapter_tensors(name: str, folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        mend = "save the adapter in safetensors" if (folder / "adapter_model.bin").is_file() else "copy it, too"
        raise MissingError(Problem(name, f"{path.name} is missing", mend))
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PosttrainError(Problem(str(path), f"cannot be read: {error}", "copy it again")) from error
    return found


def _stored_name(name: str, base: Source, wanted: str) -> str:
    """Return the name of a module's tensor in the base's files, where the model's own prefix may be missing."""
    if wanted in base.tensors:
        return wanted
    near = [one for one in base.tensors if wanted.endswith(f".{one}") or one.endswith(f".{wanted}")]
    if len(near) == 1:
        return near[0]
    cause = f"its {wanted} has no tensor in its base" + (" (a tied head?)" if "head" in wanted else "")
    raise PosttrainError(Problem(name, cause, EXPORT))


def _product(
    name: str, at: str, module: str, own: Mapping[str, Tensor], config: Mapping[str, Any], shape: tuple[int, ...]
) -> Change:
    """Return the factors of a module's change in the order of the stored table, with the scale in the left one."""
    embedded = "lora_embedding_A" in own
    ends = ("lora_embedding_A", "lora_embedding_B") if embedded else ("lora_A", "lora_B")
    if any(end not in own for end in ends):
        raise PosttrainError(Problem(name, f"{module} lacks one of its two factors", "copy the adapter again"))
    first, second = own[ends[0]].flatten(1), own[ends[1]].flatten(1)
    rank = _setting(config, "rank_pattern", "r", module)
    alpha = _setting(config, "alpha_pattern", "lora_alpha", module)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    turned = embedded or bool(config.get("fan_in_fan_out")) or (len(shape) == 2 and _is_turned(first, second, shape))
    left, right = (first.T * scale, second.T) if turned else (second * scale, first)
    rows, columns = table_of(shape)
    if left.shape != (rows, first.shape[0]) or right.shape != (first.shape[0], columns):
        cause = f"{module}: {tuple(second.shape)} times {tuple(first.shape)} does not fit {at} {tuple(shape)}"
        raise PosttrainError(Problem(name, cause, "name the base that the adapter was trained on"))
    magnitude = own.get("lora_magnitude_vector")
    if magnitude is not None and (turned or len(shape) != 2):
        raise PosttrainError(Problem(name, f"DoRA on {module} is not read row by row", EXPORT))
    return Change(left.contiguous(), right.contiguous(), None if magnitude is None else magnitude.flatten())


def _is_turned(first: Tensor, second: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a weight is stored as (in, out), as GPT-2's are: only then do the factors fit in this way alone."""
    return (second.shape[0], first.shape[1]) != tuple(shape) and (first.shape[1], second.shape[0]) == tuple(shape)


def _setting(config: Mapping[str, Any], patterns: str, key: str, module: str) -> float:
    """Return rank or alpha of a module: of the first pattern that its name ends with, as in PEFT, or of all."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(config[key])


# ---- edits -----------------------------------------------------------------------------------------------------------


def _edited(name: str, folder: Path, config: Mapping[str, Any], base: Source) -> WithChanges:
    """Return a model with edits on it. Raise PosttrainError for edits that were written on another base."""
    from posttrain.models.edit_delta import read_deltas
    from posttrain.models.sketch import differs

    mend = "use it with its own base, which adapter_config.json names"
    known = (config.get("settings") or {}).get("sketch") or {}
    changes: dict[str, list[Change]] = {}
    for delta in read_deltas(folder):
        at = _stored_name(name, base, delta.weight)
        left, right = (delta.change, None) if isinstance(delta.change, Tensor) else delta.change
        if delta.transposed:
            left, right = (left.T, None) if right is None else (right.T, left.T)
        found, expected = (len(left), (left if right is None else right).shape[1]), table_of(base.tensors[at].shape)
        if found != expected:
            cause = f"its change of {at} is {found[0]} x {found[1]}, and the tensor {expected[0]} x {expected[1]}"
            raise PosttrainError(Problem(name, cause, mend))
        if at not in changes and delta.weight in known:
            held: Any = SimpleNamespace(named_parameters=lambda w=delta.weight, at=at: [(w, numbers_of(base, at))])
            if differs({delta.weight: known[delta.weight]}, held):
                cause = f"its edits were written on another base: {delta.weight} is another"
                raise PosttrainError(Problem(name, cause, mend))
        change = Change(left.contiguous(), None if right is None else right.contiguous(), exact=True)
        changes.setdefault(at, []).append(change)
    return WithChanges(base, changes, {})
