"""Read what a folder records about its model in addition to the weights.

This is `posttrain.json`, and the head that a configuration names. Every module that loads or saves models imports this
module, and it imports none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from posttrain.config.json_text import BadJson, parse_json
from posttrain.errors import PosttrainError, Problem, TemplateError
from posttrain.models.gguf_header import is_gguf
from posttrain.models.names import resolve

__all__ = [
    "EDIT_KIND",
    "FILES_KEY",
    "HEADS",
    "HEAD_KEY",
    "NOTES_FILE",
    "Head",
    "HeadNotes",
    "cannot_generate",
    "head_modules",
    "head_of_model",
    "notes_in",
    "read_notes",
    "saved_head",
]

NOTES_FILE = "posttrain.json"
"""File of a model folder that holds the template's fingerprint and the versions that wrote the weights."""

EDIT_KIND = "edit"
"""`posttrain_tuner` of a folder of edits (`models/edit_delta.py`)."""

FILES_KEY = "files"
"""Key of `posttrain.json`: the sha256, by name, of every file that was saved with it."""

HEAD_KEY = "posttrain_head"
"""Key of a model's configuration, and of an adapter's `posttrain.json`, for the head (`HeadNotes`)."""

Head = Literal["causal", "sequence", "token", "answer"]
"""Kinds of heads: a language-model head, or one for classes of texts, classes of tokens, answer spans."""

HEADS: dict[Head, tuple[str, str]] = {
    "sequence": ("ForSequenceClassification", "classes of texts"),
    "token": ("ForTokenClassification", "classes of tokens"),
    "answer": ("ForQuestionAnswering", "answer spans"),
}
"""Maps a head to the ending of the names of transformers' classes and to its purpose."""


def read_notes(folder: Path) -> dict[str, Any]:
    """Return `posttrain.json` of a folder as a dict; empty if there is none. Raise TemplateError if the file is not
    valid JSON.
    """
    path = folder / NOTES_FILE
    if not path.is_file():
        return {}
    try:
        notes = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        location = f"{path}:{error.line}" if isinstance(error, BadJson) and error.line else str(path)
        raise TemplateError(Problem(location, "not valid JSON", "delete the file or train again")) from error
    return notes if isinstance(notes, dict) else {}


class HeadNotes(NamedTuple):
    """What a folder records about a model's head.

    `labels` are the names of the outputs, in order (none for answer spans). `settings` states how the objective reads
    texts. `modules` names the parts that were random when training began. `seed` is the seed that they were drawn from.
    """

    head: Head
    labels: tuple[str, ...]
    settings: Mapping[str, Any]
    modules: tuple[str, ...] = ()
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the notes as a dict for config.json and posttrain.json."""
        return self._asdict() | {"labels": list(self.labels), "modules": list(self.modules)}


def _from_json(found: Mapping[str, Any]) -> HeadNotes:
    return HeadNotes(found["head"], tuple(found["labels"]), found["settings"], tuple(found["modules"]), found["seed"])


def notes_in(config: Any) -> HeadNotes | None:
    """Return the head that a model's configuration names; None for a language model, or if it names no head."""
    found = config.to_dict()
    if found.get(HEAD_KEY) is not None:
        return _from_json(found[HEAD_KEY])
    architectures = config.architectures or []
    named = {head for head, (ending, _) in HEADS.items() if any(name.endswith(ending) for name in architectures)}
    if len(named) != 1:
        return None
    head = named.pop()
    if head == "answer":
        return HeadNotes(head, (), {})
    settings = {"multi_label": True} if config.problem_type == "multi_label_classification" else {}
    return HeadNotes(head, tuple(config.id2label[i] for i in range(config.num_labels)), settings)


def saved_head(name: str, *, offline: bool = True) -> HeadNotes | None:
    """Return the head of a model, read without its weights; None for language models and for missing models."""
    folder = Path(resolve(name))
    if (folder / "adapter_config.json").is_file():
        found = read_notes(folder).get(HEAD_KEY)
        return _from_json(found) if found is not None else None
    if is_gguf(folder) or (folder.is_dir() and not (folder / "config.json").is_file()):
        return None
    from transformers import PretrainedConfig

    try:  # take the configuration from the file, so that no code of the model is run
        stated, _ = PretrainedConfig.get_config_dict(resolve(name), local_files_only=offline)
        return notes_in(PretrainedConfig.from_dict(stated))
    except (OSError, ValueError):  # loading the model reports what is wrong
        return None


def head_of_model(model: Any) -> HeadNotes | None:
    """Return the head of a loaded model, with or without an adapter; None for language models."""
    return notes_in(model.config)


def head_modules(model: Any) -> tuple[str, ...]:
    """Return the names of the parts that every tuner must train: the head, and other parts that were random."""
    notes = head_of_model(model)
    return notes.modules if notes is not None else ()


def cannot_generate(name: str, notes: HeadNotes) -> PosttrainError:
    """Return the error for a model with a head where a language model is needed."""
    cause = f"has a head for {HEADS[notes.head][1]} and no language-model head: it cannot generate"
    return PosttrainError(Problem(name, cause, "use it with: posttrain predict MODEL FILE"))
