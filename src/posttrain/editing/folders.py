"""Save the edits of a session as a small folder, and open it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain import registry
from posttrain.data.records import Message
from posttrain.editing.editors._base import EditorConfig, Figures
from posttrain.editing.edits import Edit
from posttrain.editing.said import Said
from posttrain.editing.session import Applied, EditSession, Harm
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.inference.protocol import Spoken
from posttrain.models.disk import whole_folder
from posttrain.models.edit_delta import Delta, read_deltas, read_edits, write_deltas
from posttrain.models.fingerprint import remembered_base
from posttrain.models.load import LoadedModel, LoadOptions, adapter_base, load_model
from posttrain.models.names import resolve
from posttrain.models.notes import EDIT_KIND
from posttrain.models.save import write_notes

__all__ = [
    "Written",
    "begun",
    "check_output",
    "holds_edits",
    "is_edits",
    "load_to_edit",
    "open_session",
    "rows_of",
    "save_session",
    "written_in",
]

PAST = "past_keys.safetensors"
"""The keys that later edits spare: with them a session goes on as if it had never ended."""
KEPT = "statistics.safetensors"
"""What editors have learned of all edits so far, to the same end."""


def is_edits(name: str) -> bool:
    """Return whether a model's name is that of a folder of edits. Raise the errors of `resolve`."""
    return holds_edits(Path(resolve(name)))


def holds_edits(folder: Path) -> bool:
    """Return whether a folder, which need not exist, holds edits."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return False
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("posttrain_tuner") == EDIT_KIND)
    except ValueError:
        return False


def check_output(folder: Path) -> None:
    """Raise ConfigError if edits must not be written to a folder, because it holds something else."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not holds_edits(folder)):
        cause = "it holds other things than edits"
        raise ConfigError(Problem(str(folder), cause, "choose a new or an empty folder"))


class Written(NamedTuple):
    """One edit of a folder, with all that decides what it is: how it was written is a part of it."""

    prompt: Spoken
    answer: str
    subject: str
    editor: dict[str, Any]


def written_in(folder: Path) -> dict[int, Written]:
    """Return the edits of a folder by their numbers, in their order."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("settings", {})
    editors = {number: one["editor"] for one in settings.get("batches", []) for number in one["numbers"]}
    rows = {int(row["number"]): _edit(row) for row in read_edits(folder)}
    return {n: Written(row.prompt, row.answer, row.subject, editors.get(n, {})) for n, row in rows.items()}


def begun(folder: Path, base: str, start: Sequence[Written], config: EditorConfig, edits: Sequence[Edit]) -> int | None:
    """Return how many of the edits an interrupted call of the same kind has written to a folder, behind the edits that
    it started from; None if the folder holds other edits, which must not be written over.
    """
    rows = list(written_in(folder).values())
    editor = config.model_dump(mode="json")
    wanted = [Written(edit.prompt, edit.answer, edit.subject, editor) for edit in edits]
    same = rows[: len(start)] == [*start] and rows[len(start) :] == wanted[: max(0, len(rows) - len(start))]
    same = same and Path(resolve(adapter_base(folder) or "")).resolve() == Path(resolve(base)).resolve()
    return len(rows) - len(start) if same else None


def load_to_edit(name: str, **options: Unpack[LoadOptions]) -> LoadedModel:
    """Return a model whose weights can be edited: an adapter is merged into its base, and named as the edits' base."""
    options["adapter_merged"] = True
    loaded = load_model(name, **options)
    folder = Path(resolve(name))
    if adapter_base(folder) is not None:
        loaded.model.name_or_path = loaded.model.config.name_or_path = str(folder.resolve())
    return loaded


def save_session(session: EditSession, folder: Path, *, card: str | None = None) -> None:
    """Write the edits of a session: the deltas with the base's fingerprint, what was edited, and the keys that later
    edits spare. The same edits of the same model give the same bytes. Raise PosttrainError for a folder that holds
    something else, and for a model that is in no folder itself: the edits could not be loaded again.
    """
    check_output(folder)
    if not session.loaded.model.name_or_path:
        cause = "the edited model's base is in memory alone"
        mend = "save the base first, and edit what was saved"
        raise PosttrainError(Problem(str(folder), cause, mend))
    deltas = [delta for one in session.applied for delta in one.deltas]
    batches = [
        {
            "numbers": list(one.numbers),
            "editor": one.editor.model_dump(mode="json"),
            "harm": list(one.harm),
            "deltas": len(one.deltas),
        }
        for one in session.applied
    ]
    precision = str(session.loaded.model.dtype).removeprefix("torch.")
    settings = {"batches": batches, "anchors": session.anchors, "precision": precision, "sketch": session.sketch}
    past = {
        f"{number:06d}.{layer}": keys.cpu().contiguous()
        for number, one in enumerate(session.applied)
        for layer, keys in one.past.items()
    }
    model = session.loaded.model
    with whole_folder(folder) as temporary:
        write_deltas(temporary, model.name_or_path, deltas, rows_of(session), settings)
        if past:
            save_file(past, temporary / PAST)
        if session.kept:
            save_file({name: one.cpu().contiguous() for name, one in session.kept.items()}, temporary / KEPT)
        session.loaded.tokenizer.save_pretrained(temporary)
        write_notes(temporary, session.loaded.tokenizer, base=remembered_base(model))
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8", newline="\n")


def rows_of(session: EditSession) -> list[dict[str, Any]]:
    """Return one row for each edit of a session: its number, what was edited, by which editor, its figures, and what
    the model answered before and answers now, where it was asked.
    """
    rows: list[dict[str, Any]] = []
    for one in session.applied:
        for number, edit, figures in zip(one.numbers, one.edits, one.figures, strict=True):
            prompt = edit.prompt if isinstance(edit.prompt, str) else [[m.role, m.content] for m in edit.prompt]
            rows.append(
                {
                    "number": number,
                    "name": edit.name,
                    "prompt": prompt,
                    "subject": edit.subject,
                    "answer": edit.answer,
                    "location": edit.location,
                    "editor": one.editor.kind,
                    "figures": figures._asdict(),
                }
            )
            if number in session.said:
                rows[-1]["said"] = session.said[number]._asdict()
    return rows


def open_session(name: str, *, say: Callable[[str], None] = print, **how: Any) -> EditSession:
    """Return a session with the edits of a folder, on their base, ready for more edits or to undo some. how: options of
    `load_model` and of `EditSession`. Raise MissingError for a missing base and PosttrainError for a damaged folder.
    """
    folder = Path(resolve(name))
    options = {key: how.pop(key) for key in list(how) if key in LoadOptions.__annotations__}
    load_model(name, **options)  # every check of the folder, of its base and of its template
    loaded = load_to_edit(adapter_base(folder) or "", **options)
    session = EditSession(loaded, say=say, **how)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("settings", {})
    for one in _batches(folder, settings):
        session.take(one)
    session.anchors.update(settings.get("anchors", {}))
    session.kept.update(_tensors(folder / KEPT))
    session.said = {row["number"]: Said(**row["said"]) for row in read_edits(folder) if "said" in row}
    return session


def _batches(folder: Path, settings: dict[str, Any]) -> list[Applied]:
    """Return the batches of edits of a folder. Raise PosttrainError if its files do not belong together."""
    deltas = iter(read_deltas(folder))
    edits = read_edits(folder)
    past = _tensors(folder / PAST)
    try:
        rows = {int(row["number"]): row for row in edits}
        made = [_batch(number, one, rows, deltas, past) for number, one in enumerate(settings["batches"])]
        if len(rows) != sum(len(one.numbers) for one in made) or next(deltas, None) is not None:
            raise ValueError("some edits are in no batch")
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        cause = f"its files do not belong together: {error!r}"
        raise PosttrainError(Problem(str(folder), cause, "copy the folder again")) from error
    return made


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, none if it is not there."""
    try:
        return load_file(path) if path.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise PosttrainError(Problem(str(path), f"cannot be read: {error}", "copy it again")) from error


def _batch(
    number: int, one: dict[str, Any], rows: dict[int, dict[str, Any]], deltas: Any, past: dict[str, Tensor]
) -> Applied:
    editor: EditorConfig = registry.load("editor", one["editor"]["kind"]).config.model_validate(one["editor"])
    own = [rows[i] for i in one["numbers"]]
    taken: list[Delta] = [next(deltas) for _ in range(one["deltas"])]
    keys = {int(key.partition(".")[2]): value for key, value in past.items() if key.startswith(f"{number:06d}.")}
    return Applied(
        numbers=tuple(one["numbers"]),
        edits=tuple(_edit(row) for row in own),
        editor=editor,
        figures=tuple(Figures(**row["figures"]) for row in own),
        deltas=tuple(taken),
        harm=Harm(*one["harm"]),
        past=keys,
    )


def _edit(row: dict[str, Any]) -> Edit:
    prompt = row["prompt"]
    spoken = prompt if isinstance(prompt, str) else tuple(Message(role, content) for role, content in prompt)
    return Edit(spoken, row["subject"], row["answer"], row["name"], row["location"])
