"""What a folder says about its model besides the weights: `posttrain.json`, and the head that a configuration names.

Everything that loads or saves models imports this module, and it imports none of that.
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
"""The file of a model folder with the template's fingerprint and the versions that wrote the weights."""

FILES_KEY = "files"
"""Key of `posttrain.json`: the sha256 of every file that was saved beside it, by name."""

HEAD_KEY = "posttrain_head"
"""Key of a model's configuration, and of an adapter's `posttrain.json`: the head (`HeadNotes`)."""

Head = Literal["causal", "sequence", "token", "answer"]
"""What sits on top of a model: a language-model head, or one for classes of texts, classes of tokens, answer spans."""

HEADS: dict[Head, tuple[str, str]] = {
    "sequence": ("ForSequenceClassification", "classes of texts"),
    "token": ("ForTokenClassification", "classes of tokens"),
    "answer": ("ForQuestionAnswering", "answer spans"),
}
"""Head -> how the names of transformers' classes end, and what it is for."""


def read_notes(folder: Path) -> dict[str, Any]:
    """`posttrain.json` of a folder; empty when there is none."""
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
    """labels: names of the outputs, in order (none for answer spans); settings: how the objective reads texts; modules:
    names of the parts that were random when training began; seed: what they were drawn from."""

    head: Head
    labels: tuple[str, ...]
    settings: Mapping[str, Any]
    modules: tuple[str, ...] = ()
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """For config.json and posttrain.json."""
        return self._asdict() | {"labels": list(self.labels), "modules": list(self.modules)}


def _from_json(found: Mapping[str, Any]) -> HeadNotes:
    return HeadNotes(found["head"], tuple(found["labels"]), found["settings"], tuple(found["modules"]), found["seed"])


def notes_in(config: Any) -> HeadNotes | None:
    """What a model's configuration says of its head; None for a language model, or where it names no head."""
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
    """The head of a model, read without its weights; None for language models, and for what is not here."""
    folder = Path(resolve(name))
    if (folder / "adapter_config.json").is_file():
        found = read_notes(folder).get(HEAD_KEY)
        return _from_json(found) if found is not None else None
    if is_gguf(folder) or (folder.is_dir() and not (folder / "config.json").is_file()):
        return None
    from transformers import PretrainedConfig

    try:  # the configuration as the file has it, so that no code of the model's is run
        stated, _ = PretrainedConfig.get_config_dict(resolve(name), local_files_only=offline)
        return notes_in(PretrainedConfig.from_dict(stated))
    except (OSError, ValueError):  # loading says what is wrong with it
        return None


def head_of_model(model: Any) -> HeadNotes | None:
    """The head of a loaded model, with or without an adapter; None for language models."""
    return notes_in(model.config)


def head_modules(model: Any) -> tuple[str, ...]:
    """Names of the parts that a tuner must train whatever else it freezes: the head, and what was random beside it."""
    notes = head_of_model(model)
    return notes.modules if notes is not None else ()


def cannot_generate(name: str, notes: HeadNotes) -> PosttrainError:
    """The error for a model with a head where a language model is wanted."""
    cause = f"has a head for {HEADS[notes.head][1]} and no language-model head: it cannot generate"
    return PosttrainError(Problem(name, cause, "use it with: posttrain predict MODEL FILE"))
