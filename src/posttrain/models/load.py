"""Load a model and its tokenizer from a name: pocket, local folder, adapter folder, GGUF file or hub id.

Nothing is fetched from the network unless the caller allows it. On the CPU weights are float32 by default, whatever the
files hold. Pickled weights (`.bin`) are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict, Unpack

from posttrain.config.json_text import BadJson, parse_json
from posttrain.errors import MissingError, PosttrainError, Problem
from posttrain.models.fingerprint import check_base, check_template
from posttrain.models.gguf import check_gguf, gguf_config, gguf_tokenizer, load_gguf
from posttrain.models.gguf_header import is_gguf, read_header
from posttrain.models.meter import counting_tensors
from posttrain.models.names import near_model, resolve
from posttrain.models.notes import EDIT_KIND, cannot_generate, notes_in, saved_head
from posttrain.models.vocabulary import (
    keep_padding_inside,
    keep_stops,
    pad_alike,
    pad_with,
    rows_in_config,
    without_padding_outside,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LoadOptions",
    "LoadedModel",
    "Maker",
    "Source",
    "adapter_base",
    "base_of",
    "check_folder",
    "config_of",
    "embeddings_of",
    "hub_folder",
    "load_model",
    "load_tokenizer",
    "load_with",
    "resolve",
    "stop_ids",
]

BIG_PARAMETERS = 1_000_000_000
"""With more parameters than this, weights are kept in bfloat16 on a GPU that supports it."""

READ_SUFFIXES = (".json", ".safetensors", ".bin")
"""Suffixes of files in a model folder that must be readable. safetensors reports an unreadable file as "no such file".
"""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


Maker: TypeAlias = "Callable[[str, Any, Any, Mapping[str, Any]], tuple[PreTrainedModel, list[str]]]"
"""Maps (folder or hub id, its configuration, dtype, source options) to the model and the names of missing tensors."""


class LoadedModel(NamedTuple):
    """A model in eval mode, its tokenizer, and the name as the user wrote it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


class Source(TypedDict, total=False):
    """Options of where a model comes from. With `offline` (the default), nothing is fetched. With `trust_remote_code`,
    code that the model contains is run.
    """

    offline: bool
    trust_remote_code: bool


class LoadOptions(Source, total=False):
    """Options of how a model is loaded.

    - `device`: CUDA if there is one, unless given.
    - `dtype`: "auto" (float32 on the CPU; on CUDA bfloat16 for more than a billion parameters where supported, else
      float32), or "float32", "bfloat16", "float16".
    - `adapter_merged`: merge an adapter into its base.
    - `allow_template_mismatch`: accept a tokenizer that renders differently from the one the weights were trained with.
    """

    device: str | None
    dtype: str
    adapter_merged: bool
    allow_template_mismatch: bool


def load_model(name: str, **options: Unpack[LoadOptions]) -> LoadedModel:
    """Return a language model and its tokenizer, in eval mode. Raise MissingError that names the missing file, base or
    hub id. Raise TemplateError if the tokenizer renders differently from the one the weights were trained with.
    """
    if adapter_base(Path(resolve(name))) is not None and (notes := saved_head(name)) is not None:
        raise cannot_generate(name, notes)
    return load_with(name, _causal, **options)


def load_with(name: str, make: Maker, **options: Unpack[LoadOptions]) -> LoadedModel:
    """Do the work of `load_model` for any kind of model. `make` makes the model from a folder. Adapters are then put on
    this model.
    """
    import torch

    offline, trust = options.get("offline", True), options.get("trust_remote_code", False)
    device = torch.device(options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    way = _Way(make, device, options.get("dtype", "auto"), _for_transformers(offline, trust))
    model = _load(name, way, options.get("adapter_merged", False), within=())
    tokenizer = load_tokenizer(name, offline=offline, trust_remote_code=trust)
    check_template(name, tokenizer, allow_mismatch=options.get("allow_template_mismatch", False))
    keep_padding_inside(model, tokenizer, name)
    pad_alike(model, tokenizer)
    model.eval()
    return LoadedModel(model, tokenizer, name)


class _Way(NamedTuple):
    """How to load every folder that a model consists of: an adapter's, and its base's."""

    make: Maker
    device: torch.device
    dtype: str
    source: Mapping[str, bool]


def _for_transformers(offline: bool = True, trust_remote_code: bool = False) -> dict[str, bool]:
    """Return the options of `Source` under the names that `from_pretrained` uses."""
    return {"local_files_only": offline, "trust_remote_code": trust_remote_code}


def _load(name: str, way: _Way, merged: bool, within: tuple[str, ...]) -> PreTrainedModel:
    folder = resolve(name)
    base = adapter_base(Path(folder))
    if base is not None:
        if base in within:
            raise MissingError(Problem(f"{folder}/adapter_config.json", f"the adapter's base is itself ('{base}')"))
        return _load_adapter(name, base, way, merged, (*within, name))
    return _load_weights(name, folder, way)


def _causal(folder: str, config: Any, dtype: Any, source: Mapping[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    """Return a language model, and the names of tensors that are missing in its files."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    notes = notes_in(config)
    if notes is not None:
        raise cannot_generate(folder, notes)
    said = config.to_dict()
    one_way = said.get("is_decoder") or said.get("is_encoder_decoder")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not one_way:
        mend = "train a head on it: text_classification, token_classification or extractive_qa"
        cause = (
            f"{config.model_type} is an encoder: it reads in both directions, so it can neither generate nor learn to"
        )
        raise PosttrainError(Problem(folder, cause, mend))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, weights_only=True, output_loading_info=True, **source
    )
    return model, sorted(report["missing_keys"])


def _load_weights(name: str, folder: str, way: _Way) -> PreTrainedModel:
    import safetensors
    import transformers

    check_folder(folder)
    if is_gguf(file := folder):
        if way.make is not _causal:
            mend = f"save it first: posttrain model convert {file} DIR"
            raise PosttrainError(Problem(file, "a GGUF file is read as a language model only", mend))
        dtype = _dtype(way.dtype, way.device, gguf_config(Path(file)), trust=False)
        return _named(load_gguf(Path(file), dtype).to(way.device), name, file)
    trust = way.source["trust_remote_code"]
    try:
        config = without_padding_outside(transformers.AutoConfig.from_pretrained(folder, **way.source))
        chosen = _dtype(way.dtype, way.device, config, trust)
        with counting_tensors():
            model, missing = way.make(folder, config, chosen, way.source)
    except (OSError, safetensors.SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise _unloadable(name, folder, way.source["local_files_only"], error) from error
    except (ValueError, RuntimeError) as error:
        cause = f"the model cannot be loaded: {_first_line(error)}"
        raise PosttrainError(Problem(name, cause, _mend(error, trust))) from error
    if missing:
        cause = f"the files lack {len(missing)} of the model's tensors (such as {missing[0]}); they would be random"
        raise PosttrainError(Problem(name, cause, "take the complete model"))
    return _named(model.to(way.device), name, folder)


def _named(model: PreTrainedModel, name: str, folder: str) -> PreTrainedModel:
    """Set the name that an adapter saved later gives as its base. A path becomes absolute; `pocket:chat` is kept."""
    local = Path(folder).is_dir() or is_gguf(folder)
    model.name_or_path = name if name.startswith("pocket:") or not local else str(Path(folder).resolve())
    model.config.name_or_path = model.name_or_path
    return model


def hub_folder(name: str, *, offline: bool = True) -> Path:
    """Return the folder of a hub model in the local cache. Fetch it first if `offline` is False. Raise MissingError if
    it is not there.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=offline))
    except (OSError, ValueError) as error:
        raise _unloadable(name, name, offline, error) from error


def config_of(name: str, **how: Unpack[Source]) -> Any:
    """Return a model's configuration, read without its weights. Raise OSError if there is none."""
    import transformers

    found = resolve(name)
    if is_gguf(found):
        return gguf_config(Path(found))
    return without_padding_outside(transformers.AutoConfig.from_pretrained(found, **_for_transformers(**how)))


def embeddings_of(name: str, **how: Unpack[Source]) -> int | None:
    """Return how many tokens a model has embeddings for, without reading its weights; None if it is not stated."""
    try:
        return rows_in_config(config_of(base_of(name), **how))
    except (OSError, ValueError):  # loading the model reports what is wrong
        return None


def base_of(name: str) -> str:
    """Return the base of an adapter, or of adapters on adapters. Return any other name unchanged."""
    seen = {name}
    while (base := adapter_base(Path(resolve(name)))) is not None and base not in seen:
        seen.add(base)
        name = base
    return name


def _load_adapter(name: str, base: str, way: _Way, merged: bool, within: tuple[str, ...]) -> PreTrainedModel:
    import safetensors
    from peft import PeftModel, load_peft_weights

    from posttrain.models.adapters import make_base_fit, misfits
    from posttrain.models.added import load_added, merged_added
    from posttrain.models.merge_adapter import merge_peft, say_layers

    folder = Path(resolve(name))
    at = str(folder / "adapter_config.json")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not any((folder / file).is_file() for file in ("adapter_model.safetensors", "adapter_model.bin")):
        raise MissingError(Problem(name, "adapter_model.safetensors is missing in the adapter's folder"))
    try:
        model = _load(base, way, True, within)
    except MissingError as error:
        mend = "put the base where adapter_config.json says, or change base_model_name_or_path there"
        raise MissingError(Problem(at, f"the adapter's base '{base}' is missing", mend), *error.problems) from error
    check_base(folder, base, model)
    if config.get("posttrain_tuner") == EDIT_KIND:
        from posttrain.models.edit_delta import apply_deltas, read_deltas
        from posttrain.models.sketch import differs

        if changed := differs(config.get("settings", {}).get("sketch"), model):
            cause = f"the edits were written on another base than '{base}': {changed} is another"
            theirs = "put the model they were written on where adapter_config.json says (base_model_name_or_path)"
            raise PosttrainError(Problem(str(folder), cause, theirs))
        apply_deltas(model, read_deltas(folder), str(folder))
        return _named(model, name, str(folder))
    if "posttrain_tuner" in config:
        added = load_added(model, folder, config)
        return merged_added(added) if merged else added
    soft = config.get("peft_type") in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
    if merged and soft:  # before anything is loaded into the base
        cause = f"{config['peft_type']} cannot be merged into its base: it is no change of weights"
        raise PosttrainError(Problem(at, cause, "use it as it is"))
    mend = "put the model it was trained on where adapter_config.json says (base_model_name_or_path)"
    try:
        with warnings.catch_warnings():
            # The first is raised as an error below. PEFT 0.21 uses an old name of an attribute of transformers 5.23.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            # posttrain handles these cases: a vocabulary of another size, a matrix that two modules share
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            make_base_fit(model, folder, base, config)
            adapted = PeftModel.from_pretrained(model, str(folder))
            say_layers(adapted)
    except (ValueError, RuntimeError, OSError, safetensors.SafetensorError) as error:
        cause = f"the adapter does not fit its base '{base}': {_first_line(error)}"
        raise PosttrainError(Problem(name, cause, mend)) from error
    if wrong := misfits(adapted, load_peft_weights(str(folder), device="cpu")):
        cause = f"the adapter does not fit its base '{base}': {', '.join(wrong[:3])}"
        raise PosttrainError(Problem(name, cause, f"{mend}, or save the adapter again"))
    return merge_peft(adapted, str(folder)) if merged else adapted


def adapter_base(folder: Path) -> str | None:
    """Return the base that an adapter folder names; None if the folder is not an adapter's. Raise MissingError if
    adapter_config.json does not name the base.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = parse_json(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except BadJson as bad:
        cause = f"does not name the adapter's base (base_model_name_or_path): {bad.cause}"
        raise MissingError(Problem(f"{path}:{bad.line}" if bad.line else str(path), cause, bad.mend)) from bad
    except (ValueError, KeyError, TypeError) as error:
        raise MissingError(Problem(str(path), "does not name the adapter's base (base_model_name_or_path)")) from error
    if not isinstance(base, str) or not base:
        raise MissingError(Problem(str(path), "base_model_name_or_path is empty", "write the base model's name there"))
    return base


def check_folder(name: str) -> None:
    """Raise MissingError for a folder without configuration, weights, or one of the shards that its index names.

    For a GGUF file, raise the errors of `check_gguf`. An adapter's folder and a name that is not a folder pass, because
    loading checks them.
    """
    folder = Path(resolve(name))
    if is_gguf(folder):
        check_gguf(folder)
        return
    if not folder.is_dir() or (folder / "adapter_config.json").is_file():
        return
    if not (folder / "config.json").is_file():
        mend = "a model folder has config.json and weights"
        raise MissingError(Problem(str(folder), "no config.json: not a model folder", mend))
    closed = [p for p in sorted(folder.iterdir()) if p.suffix in READ_SUFFIXES and not os.access(p, os.R_OK)]
    if closed:
        cause = "cannot be read: permission denied"
        raise MissingError(*(Problem(str(p), cause, "let this user read it") for p in closed))
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = folder / index_name
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise MissingError(Problem(str(index), "does not list the weights' files", "copy it again")) from error
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                causes = [f"{s} is missing ({index_name} names it)" for s in missing]
                raise MissingError(*(Problem(str(folder), cause, "copy it too") for cause in causes))
            return
    if not any((folder / file).is_file() for file in ("model.safetensors", "pytorch_model.bin")):
        cause = "no weights: model.safetensors is missing"
        raise MissingError(Problem(str(folder), cause, "copy the weights into the folder"))


def _dtype(dtype: str, device: torch.device, config: Any, trust: bool) -> torch.dtype:
    import torch
    import transformers

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise PosttrainError(Problem("dtype", f"unknown '{dtype}'", f"one of auto, {', '.join(named)}"))
    if device.type != "cuda" or not torch.cuda.is_bf16_supported():
        return torch.float32
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    count = sum(p.numel() for p in empty.parameters())
    return torch.bfloat16 if count > BIG_PARAMETERS else torch.float32


def load_tokenizer(name: str, **how: Unpack[Source]) -> PreTrainedTokenizerBase:
    """Return the tokenizer: an adapter's own if its folder has one, else its base's. A missing pad token is set in
    memory.
    """
    import transformers

    folder = resolve(name)
    if Path(folder).is_dir() and not any((Path(folder) / file).is_file() for file in TOKENIZER_FILES):
        base = adapter_base(Path(folder))
        if base is not None:
            return load_tokenizer(base, **how)
        mend = "copy the tokenizer's files into the folder"
        raise MissingError(Problem(folder, "no tokenizer: tokenizer.json is missing", mend))
    source = _for_transformers(**how)
    tokenizer: Any
    try:
        if is_gguf(folder):
            tokenizer = gguf_tokenizer(Path(folder))
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
    except OSError as error:
        raise _unloadable(name, folder, source["local_files_only"], error) from error
    except (ValueError, KeyError, ImportError) as error:
        mend = _mend(error, source["trust_remote_code"])
        raise PosttrainError(Problem(name, f"the tokenizer cannot be loaded: {_first_line(error)}", mend)) from error
    if tokenizer.pad_token_id is None:
        named = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.convert_ids_to_tokens(0))
        pad_with(tokenizer, next(token for token in named if token is not None))
    if not all(token.special for token in tokenizer.added_tokens_decoder.values()):
        keep_stops(tokenizer, stop_ids(name, tokenizer, **how))
    return tokenizer


def stop_ids(name: str, tokenizer: PreTrainedTokenizerBase, **how: Unpack[Source]) -> tuple[int, ...]:
    """Return the token ids at which generation stops, read without the weights. They come from generation_config.json,
    else config.json, else the tokenizer's end token; for a GGUF file from its header.
    """
    import transformers

    folder = resolve(name)
    base = adapter_base(Path(folder))
    if base is not None:
        return stop_ids(base, tokenizer, **how)
    if is_gguf(folder) and (stops := read_header(Path(folder)).stops):
        return stops
    offline = how.get("offline", True)
    reads: tuple[Callable[[], Any], ...] = (
        lambda: transformers.GenerationConfig.from_pretrained(folder, local_files_only=offline),
        lambda: config_of(name, **how),
    )
    found: Any = None
    for read in reads:
        with suppress(OSError, ValueError):
            found = read().to_dict().get("eos_token_id") if found is None else found
    found = tokenizer.eos_token_id if found is None else found
    return tuple(int(i) for i in (found if isinstance(found, list | tuple) else [found]) if i is not None)


def _unloadable(name: str, folder: str, offline: bool, error: Exception) -> PosttrainError:
    if Path(folder).is_dir():
        cause = f"the files cannot be read: {_first_line(error)}"
        return PosttrainError(Problem(folder, cause, "copy the model again"))
    if offline:
        cause = "neither a folder here nor in the local hub cache"
        if near := near_model(name):
            mend = f"did you mean '{near}'? (--download allows fetching it from the hub)"
            return MissingError(Problem(name, cause, mend))
        return MissingError(Problem(name, cause, "--download allows fetching it from the hub"))
    cause = f"not to be had from the hub: {_first_line(error)}"
    return MissingError(Problem(name, cause, "check the name and network"))


def _mend(error: Exception, trust: bool) -> str:
    if "trust_remote_code" in str(error) and not trust:
        return "the model brings its own code: pass --trust-remote-code if you trust it"
    return "copy the model again"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.split("\n", 1)[0][:300] if text else type(error).__name__
