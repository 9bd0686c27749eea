"""Export a model as a folder that transformers loads: an adapter merged into its base, or the adapter alone.

Merging is done in float32, and the result is rounded once. The folder is then loaded by transformers alone and must
give the outputs of the rounded source; otherwise it is deleted. The result states how much rounding changes outputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, Unpack

import torch
import transformers
from peft import PeftModel, load_peft_weights
from safetensors.torch import load_file, save_file

from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.models.disk import as_umask_says, gib_in, starting_anew, writing
from posttrain.models.edit_delta import write_lora
from posttrain.models.fingerprint import template_fingerprint
from posttrain.models.heads import load_any
from posttrain.models.load import LoadedModel, Source, adapter_base, hub_folder
from posttrain.models.merge_adapter import is_tied, relative_distance, some_logits
from posttrain.models.names import REAL, resolve, say_taken
from posttrain.models.notes import EDIT_KIND, head_of_model, read_notes
from posttrain.models.save import save_model, saved_padding, write_notes
from posttrain.models.tensors import stored_dtype
from posttrain.models.vocabulary import padding_of_files

__all__ = ["ExportDtype", "Exported", "export_model"]

ExportDtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SAME = 1e-5
"""Largest difference between the outputs of the written model and of the rounded source. The unit is the standard
deviation of the outputs. Only the order of additions may differ.
"""


class Exported(NamedTuple):
    """What an export wrote.

    `gib` is the size of the folder in GiB. `rounding` is how much outputs differ from those of the float32 source, as a
    share of their standard deviation. `tied` says whether the output head still shares the embedding's matrix (an
    adapter may have changed only one of the two). `notes` is what a user of the folder has to know.
    """

    output: str
    source: str
    kind: Literal["merged model", "model", "adapter"]
    architecture: str
    parameters: int
    dtype: str
    tied: bool
    gib: float
    rounding: float
    chat_template: bool
    loads_with: str
    notes: tuple[str, ...] = ()


@starting_anew()
def export_model(
    name: str,
    output: Path,
    *,
    adapter: bool = False,
    dtype: ExportDtype = "auto",
    say: Callable[[str], None] = print,
    **how: Unpack[Source],
) -> Exported:
    """Write the model to `output`, which must be new or empty, and check it by loading it again.

    With `adapter`, only the adapter is written and nothing is merged. `dtype` "auto" keeps the type of the base's
    files, or with `adapter` the type of the adapter's own files.

    Raise ConfigError if there is no adapter to export or the folder is not empty. Raise PosttrainError for an adapter
    that is not a change of weights, and if the written model differs from its source.
    """
    say_taken(name, say)
    name = resolve(name) if Path(name).is_dir() else name
    if not Path(resolve(name)).exists():
        hub_folder(name, offline=how.get("offline", True))  # raises MissingError before anything else is reported
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(Problem(str(output), "is there already and is not overwritten", "choose a new folder"))
    is_adapter = (Path(resolve(name)) / "adapter_config.json").is_file()
    if adapter and not is_adapter:
        raise ConfigError(Problem("--adapter", f"{name} is no adapter", "leave it out: the whole model is written"))
    try:
        if adapter:
            return _adapter(name, output, dtype, how, say)
        return _whole(name, output, dtype, how, say, merged=is_adapter)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise


def _whole(
    name: str, output: Path, dtype: ExportDtype, how: Source, say: Callable[[str], None], *, merged: bool
) -> Exported:
    named = (stored_dtype(name, **how) or "float32") if dtype == "auto" else dtype
    if dtype == "auto":
        say(f"stored in {named}, as {'its base' if merged else 'the model'} is (--dtype for another)")
    wanted = TORCH[named]
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "say": say, **how}
    expected = some_logits(load_any(name, **options).model)  # the adapter on its base, which is freed at once
    loaded = load_any(name, adapter_merged=True, **options)
    model: Any = loaded.model
    _fits(name, model, wanted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(wanted))
    rounded = some_logits(model)
    far = relative_distance(rounded, expected)
    if head_of_model(model) is None and (pads := padding_of_files(loaded.tokenizer)) is not None and pads.own:
        config = f"names {pads.named[0]}" if pads.named[0] is not None else "names none"
        say(f"the padding token stays {pads.own!r}, as in the source; it has no embedding, so config.json {config}")
    with writing(output):
        save_model(model, loaded.tokenizer, output, dtype=wanted, card=_card(name, named, merged=merged))
    by = _loads_again(output, loaded, rounded, trust_remote_code=how.get("trust_remote_code", False))
    return Exported(
        output=str(output),
        source=name,
        kind="merged model" if merged else "model",
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=named,
        tied=is_tied(model),
        gib=gib_in(output),
        rounding=far,
        chat_template=bool(loaded.tokenizer.chat_template),
        loads_with=by,
        notes=_rounded(named, far),
    )


def _rounded(dtype: str, far: float, *, adapter: bool = False) -> tuple[str, ...]:
    """Return the note of an export with rounded numbers; an empty tuple if rounding changed nothing."""
    if far <= SAME:
        return ()
    moved = f"rounded to {dtype}: outputs differ from the source's by {far:.2%} of their spread, so answers may differ"
    if adapter:
        return (f"{moved}; --dtype auto keeps the source's answers",)
    return (f"{moved}; the files were checked against the rounded source; --dtype float32 keeps the source's answers",)


def _fits(name: str, model: Any, dtype: torch.dtype) -> None:
    """Raise PosttrainError if a number would become infinite in `dtype`."""
    largest = torch.finfo(dtype).max
    for key, parameter in model.named_parameters():
        if bool((parameter.detach().abs() > largest).any()):
            cause = f"{key} has numbers that {str(dtype).removeprefix('torch.')} cannot hold (above {largest:g})"
            raise PosttrainError(Problem(name, cause, "use --dtype bfloat16 or float32"))


def _loads_again(output: Path, source: LoadedModel, expected: torch.Tensor | None, *, trust_remote_code: bool) -> str:
    """Load the written model and compare its outputs. Return the name of the library that loads it. Raise
    PosttrainError if the outputs or the rendered template differ."""
    if head_of_model(source.model) is None:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            output, dtype="float32", local_files_only=True, trust_remote_code=trust_remote_code
        )
        own_code = "auto_map" in model.config.to_dict()
        by = "transformers, with trust_remote_code" if own_code else "transformers"
    else:
        model = load_any(str(output), device="cpu", dtype="float32", trust_remote_code=trust_remote_code).model
        by = "transformers, its labels with posttrain"
    found = some_logits(model)
    far = relative_distance(found, expected)
    if not far <= SAME:
        cause = f"what was written is another model: outputs differ by {far:.1%} of their spread, and it was removed"
        raise PosttrainError(Problem(str(output), cause, "please report this, with the architecture"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        output, local_files_only=True, trust_remote_code=trust_remote_code
    )
    if template_fingerprint(tokenizer) != template_fingerprint(source.tokenizer):
        cause = "the tokenizer that was written renders otherwise than the source's, and the folder was removed"
        raise PosttrainError(Problem(str(output), cause, "please report this, with the tokenizer"))
    return by


def _adapter(name: str, output: Path, dtype: ExportDtype, how: Source, say: Callable[[str], None]) -> Exported:
    """Write the adapter's files, its tokenizer with the template, and a card. Raise PosttrainError if the written
    adapter gives other outputs."""
    folder = Path(resolve(name))
    loaded = load_any(name, device="cpu", dtype="auto", say=say, **how)
    expected = some_logits(loaded.model)
    output.mkdir(parents=True, exist_ok=True)
    with writing(output):
        tensors = _adapter_files(folder, output, dtype)
        with saved_padding(loaded.model, loaded.tokenizer):
            loaded.tokenizer.save_pretrained(output)
        noted = read_notes(folder).get("base_fingerprint")
        write_notes(output, loaded.tokenizer, base=noted, head=head_of_model(loaded.model))
        base = adapter_base(output) or ""
        card = _card(name, None, merged=False, base=base, fingerprint=noted)
        (output / "README.md").write_text(card, encoding="utf-8", newline="\n")
        as_umask_says(output)
    found = some_logits(load_any(str(output), device="cpu", dtype="auto", say=say, **how).model)
    far = relative_distance(found, expected)
    if not far <= (SAME if dtype == "auto" else 5e-2):
        cause = f"what was written is another adapter: outputs differ by {far:.1%} of their spread, and it was removed"
        raise PosttrainError(Problem(str(output), cause, "please report this, with adapter_config.json"))
    config = json.loads((output / "adapter_config.json").read_text(encoding="utf-8"))
    notes = _rounded(dtype, far, adapter=True)
    if _is_path(base):
        marked = f" (fingerprint {noted})" if noted is not None else ""
        notes += (
            f"adapter_config.json names the base by a path that others do not have: {base}{marked}; they set "
            "base_model_name_or_path there to their copy of it, or take the merged model (without --adapter)",
        )
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()}
    return Exported(
        output=str(output),
        source=name,
        kind="adapter",
        architecture=str(config.get("peft_type") or config.get("posttrain_tuner")),
        parameters=sum(t.numel() for t in tensors.values()),
        dtype=", ".join(sorted(kinds)),
        tied=is_tied(loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model),
        gib=gib_in(output),
        rounding=far,
        chat_template=bool(loaded.tokenizer.chat_template),
        loads_with="PEFT" if "peft_type" in config else "posttrain only; without --adapter for others",
        notes=notes,
    )


def _adapter_files(folder: Path, output: Path, dtype: ExportDtype) -> dict[str, torch.Tensor]:
    """Write an adapter's configuration and weights, and return the tensors. Edits are written as a LoRA adapter."""
    path = folder / "adapter_model.safetensors"
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("posttrain_tuner") == EDIT_KIND:
        tensors = write_lora(folder, output)
    else:
        shutil.copyfile(folder / "adapter_config.json", output / "adapter_config.json")
        tensors = load_file(path) if path.is_file() else load_peft_weights(str(folder), device="cpu")
    if dtype != "auto":
        tensors = {key: t.to(TORCH[dtype]) if t.is_floating_point() else t for key, t in tensors.items()}
    save_file({key: t.contiguous() for key, t in tensors.items()}, output / path.name, metadata={"format": "pt"})
    return tensors


def _is_path(base: str) -> bool:
    """Return whether an adapter's base is named by a path on this disk, and not by a name that other machines know."""
    if base.startswith("pocket:"):
        return False
    path = Path(base).expanduser()
    return path.is_absolute() or path.exists() or base.startswith(".") or "\\" in base or base.count("/") > 1


def _card(name: str, dtype: str | None, *, merged: bool, base: str = "", fingerprint: str | None = None) -> str:
    """Return the text of README.md: what the export was made of, without paths of this machine. `base` and
    `fingerprint` are for an adapter that is exported alone."""
    own = Path(base).expanduser().name if _is_path(base) else base
    what = f"an adapter for the base `{own}`" if dtype is None else f"stored as {dtype}"
    how = f"Exported by posttrain from `{Path(name).name or name}`: {what}."
    if dtype is None and fingerprint is not None:
        how = f"{how[:-1]} (its weights' fingerprint: `{fingerprint}`)."
    if dtype is None and _is_path(base):
        how += (
            " adapter_config.json names the base by a path of the machine that wrote it: set `base_model_name_or_path` "
            "there to your copy of the base, or ask for the merged model (`model export` without `--adapter`)."
        )
    if dtype is None and (base.startswith("pocket:") or base == REAL):
        how += (
            f" Only posttrain knows `{base}` by that name: for plain PEFT, write it by `posttrain model export {base} "
            "DIR`, and give that folder as the base: "
            "`PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(DIR), THIS_FOLDER)`."
        )
    if merged:
        how += " An adapter was merged into its base's weights."
    card = Path(resolve(name)) / "README.md"
    before = card.read_text(encoding="utf-8", errors="replace").strip() if card.is_file() else ""
    return "\n".join([how, "", *(["## The card of the source", "", before, ""] if before else [])])
