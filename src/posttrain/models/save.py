"""Save a model folder (safetensors, tokenizer, `posttrain.json`), either completely or not at all."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from posttrain.errors import PosttrainError, Problem
from posttrain.models.disk import whole_folder
from posttrain.models.fingerprint import file_fingerprint, remembered_base, template_fingerprint
from posttrain.models.notes import FILES_KEY, HEAD_KEY, NOTES_FILE, HeadNotes, head_of_model
from posttrain.models.vocabulary import own_padding

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TRAINED_IN", "is_saved", "save_model", "saved_padding", "write_notes"]

TRAINED_IN = "trained_in"
"""Key of `posttrain.json`: the precision of the weights in memory, if they are stored in another one."""

MODEL_FILES = ("config.json", "adapter_config.json", NOTES_FILE)
"""A folder with one of these files may be replaced by a new model; any other folder that is not empty may not."""


def write_notes(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base: str | None = None,
    head: HeadNotes | None = None,
    trained_in: str | None = None,
    hashed: bool = True,
) -> None:
    """Write `posttrain.json`. Call it after all other files are written.

    `base` is the fingerprint of an adapter's base. `head` is an adapter's head (a model's own head is in config.json).
    `trained_in` is the precision in memory if the weights are stored in another one. With `hashed`, the fingerprints of
    all other files are added, except that of the card, which users edit.
    """
    import torch
    import transformers

    from posttrain import __version__

    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (NOTES_FILE, "README.md")]
    notes: dict[str, Any] = {
        "template_fingerprint": template_fingerprint(tokenizer),
        **({"base_fingerprint": base} if base is not None else {}),
        **({HEAD_KEY: head.to_json()} if head is not None else {}),
        **({TRAINED_IN: trained_in} if trained_in is not None else {}),
        **({FILES_KEY: {path.name: file_fingerprint(path) for path in paths}} if hashed else {}),
        "versions": {"posttrain": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
    }
    text = json.dumps(notes, indent=2, ensure_ascii=False) + "\n"
    (folder / NOTES_FILE).write_text(text, encoding="utf-8", newline="\n")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    card: str | None = None,
    dtype: torch.dtype | None = None,
    hashed: bool = True,
) -> None:
    """Save to a temporary folder next to `folder`, then rename it.

    A kill at any moment leaves the old or the new folder.

    A PEFT model, or one with a part that posttrain added, is saved as an adapter folder that names its base. `card` is
    the text of README.md. `dtype` is the precision of the model's numbers, by default the precision in memory. With
    `hashed`, the fingerprints of all files are stored, and `posttrain model verify` compares them.

    Raise PosttrainError if `folder` holds other things than a model. Raise DiskError if the disk is full; then the old
    model is kept.
    """
    import transformers
    from peft import PeftModel

    from posttrain.models.adapters import save_peft
    from posttrain.models.added import added_to, save_added

    if folder.exists():
        if not folder.is_dir():
            raise PosttrainError(Problem(str(folder), "is a file, a folder is expected", "choose another output"))
        if any(folder.iterdir()) and not any((folder / name).exists() for name in MODEL_FILES):
            cause = "the folder holds other things than a model"
            raise PosttrainError(Problem(str(folder), cause, "choose a new or an empty folder"))
    transformers.utils.logging.disable_progress_bar()  # bars called "Writing model shards"
    base: str | None = None
    trained_in: str | None = None
    adapter = isinstance(model, PeftModel) or added_to(model) is not None
    with whole_folder(folder) as temporary:
        with saved_padding(model, tokenizer):
            if isinstance(model, PeftModel):
                base = remembered_base(model.get_base_model())
                save_peft(model, temporary)
            elif adapter:
                base = remembered_base(model)
                save_added(model, temporary)
            elif dtype is None or dtype == model.dtype:
                model.save_pretrained(temporary)
            else:
                model.save_pretrained(temporary, state_dict=_cast(model, dtype))
                _say_dtype(temporary / "config.json", dtype)
                trained_in = str(model.dtype).removeprefix("torch.")
            tokenizer.save_pretrained(temporary)
        head = head_of_model(model) if adapter else None
        write_notes(temporary, tokenizer, base=base, head=head, trained_in=trained_in, hashed=hashed)
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8", newline="\n")


def is_saved(folder: Path) -> bool:
    """Return whether a folder holds weights, of a model or an adapter, in files that are whole."""
    files = list(folder.glob("*.safetensors"))
    try:
        for file in files:
            with safe_open(file, "pt"):
                pass
    except SafetensorError:
        return False
    return bool(files)


def saved_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[None]:
    """Within this block, model and tokenizer name the pad token of the files that they were loaded from. A model with a
    head keeps the pad token that it was trained with, because it finds the end of a text by it.
    """
    return nullcontext() if head_of_model(model) is not None else own_padding(model, tokenizer)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a model's tensors in another precision; shared tensors stay shared."""
    made: dict[int, Tensor] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in made:
            made[id(tensor)] = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
        found[name] = made[id(tensor)]
    return found


def _say_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write the stored precision into config.json, which names that of the model in memory."""
    named = str(dtype).removeprefix("torch.")
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if part is config or "dtype" in part:
            part["dtype"] = named
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
