"""Save a model folder: safetensors, tokenizer, `posttrain.json`; whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.models.disk import writing
from posttrain.models.fingerprint import NOTES_FILE, remembered_base, template_fingerprint
from posttrain.models.heads import NOTED, HeadNotes, head_of_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["save_model", "write_notes"]

MODEL_FILES = ("config.json", "adapter_config.json", NOTES_FILE)
"""A folder with one of these may be replaced by a newer model; any other folder with something in it may not."""


def write_notes(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *, base: str | None = None, head: HeadNotes | None = None
) -> None:
    """Write `posttrain.json`: the template's fingerprint, that of an adapter's base where it is known, the adapter's
    head (a model's own stands in config.json), and the versions that wrote the weights.
    """
    import torch
    import transformers

    from posttrain import __version__

    notes: dict[str, Any] = {
        "template_fingerprint": template_fingerprint(tokenizer),
        **({"base_fingerprint": base} if base is not None else {}),
        **({NOTED: head.to_json()} if head is not None else {}),
        "versions": {"posttrain": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
    }
    text = json.dumps(notes, indent=2, ensure_ascii=False) + "\n"
    (folder / NOTES_FILE).write_text(text, encoding="utf-8", newline="\n")


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, card: str | None = None
) -> None:
    """Save to a temporary folder beside `folder`, then rename; a kill at any moment leaves the old or the new one.

    A PEFT model, or one with a part of ours added, is saved as an adapter folder that names its base. card: the text
    of README.md.
    PosttrainError when `folder` holds something that is not a model, DiskError when the disk is full: the old model is
    kept then, and nothing of the new one.
    """
    if folder.exists():
        if not folder.is_dir():
            raise PosttrainError(Problem(str(folder), "is a file, a folder is expected", "choose another output"))
        if any(folder.iterdir()) and not any((folder / name).exists() for name in MODEL_FILES):
            raise PosttrainError(
                Problem(str(folder), "the folder holds other things than a model", "choose a new or an empty folder")
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    old = folder.parent / f".{folder.name}.old-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with writing(folder, temporary):
            _write(model, tokenizer, temporary)
            if card is not None:
                (temporary / "README.md").write_text(card, encoding="utf-8", newline="\n")
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    import transformers
    from peft import PeftModel

    from posttrain.models.adapters import save_peft
    from posttrain.models.added import added_to, save_added

    transformers.utils.logging.disable_progress_bar()  # transformers' own "Writing model shards" bars
    base: str | None = None
    adapter = isinstance(model, PeftModel) or added_to(model) is not None
    if isinstance(model, PeftModel):
        base = remembered_base(model.get_base_model())
        save_peft(model, folder)
    elif added_to(model) is not None:
        base = remembered_base(model)
        save_added(model, folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_notes(folder, tokenizer, base=base, head=head_of_model(model) if adapter else None)
