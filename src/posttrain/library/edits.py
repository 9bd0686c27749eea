"""`pt.edit`: rewrite facts in a copy of a model; list them, take them back, save them small, merge them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from pydantic import InstanceOf

from posttrain import registry
from posttrain.config.load import check
from posttrain.editing.editors._base import EditorConfig
from posttrain.editing.edits import Edit, each_once, edits_of
from posttrain.editing.folders import check_output, is_edits, load_to_edit, open_session, rows_of, save_session
from posttrain.editing.session import EditSession
from posttrain.errors import ConfigError, Problem
from posttrain.library.models import Count, Model, as_arguments
from posttrain.library.verbs import Changes, changes_of
from posttrain.models.added import added_to
from posttrain.studies.edit_verdicts import ask_all

__all__ = ["EditedModel", "edit"]

Edits = Changes | Edit | Sequence[Edit]
"""What is written: change files, changes, mappings of their keys, mappings {prompt, subject, answer}, or edits."""
KEYS = ("prompt", "subject", "answer", "name")


@dataclass(frozen=True, repr=False)
class EditedModel(Model):
    """A model with edits in its weights. session: what was written, and the way back."""

    session: EditSession = field(kw_only=True)

    @property
    def edits(self) -> list[dict[str, Any]]:
        """One mapping for each edit: number, prompt, subject, answer, editor, its figures, and `said`: the answers
        before it and now, and whether the latter is right.
        """
        ask_all(self.session)
        return rows_of(self.session)

    @as_arguments
    def apply(self, edits: Any, *, editor: str = "memit", batch: Count | None = None, force: bool = False) -> None:
        """Write more edits into this model; see `pt.edit`."""
        config = registry.load("editor", editor).config()
        _write(self.session, _edits(edits, self.session.say, config), config, batch, force)

    @as_arguments
    def undo(self, *numbers: int) -> None:
        """Take edits back by their numbers, all of them without a number; then every weight has its old bits."""
        self.session.undo(*numbers)

    @as_arguments
    def save(self, folder: str | Path) -> Path:
        """Save the edits as a small folder, which loads as a model anywhere in posttrain; `posttrain model export`
        merges it into the weights, or with --adapter writes a LoRA adapter for PEFT.
        """
        ask_all(self.session)
        save_session(self.session, Path(folder))
        return Path(folder)


@as_arguments
def edit(
    base: InstanceOf[Model] | str | Path,
    edits: Any,
    *,
    editor: str = "memit",
    batch: Count | None = None,
    force: bool = False,
    name: str = "",
    output: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> EditedModel:
    """Write edits into a copy of a model and return it; the base is not changed.

    base: a model, or one with edits to go on with (a folder of edits, what `pt.edit` gave); edits: change files (their
    targets, each with a subject), changes, mappings of their keys, {"prompt": ..., "subject": ..., "answer": ...}, or a
    list of such mappings, or `Edit` objects; editor: see `posttrain list
    editors`; batch: edits that are written together, all if None; force: write also what would break the model;
    output: a folder for the edits; say: takes lines for the user; settings: keys of the editor, such as
    `layers=[4, 5]`.
    Raise ConfigError for an unknown editor or key, for a layer that does not exist, and for edits that the model says
    already; DataError for targets without a subject; Refused for edits that would break the model.
    """
    config = check({"kind": editor, **settings}, registry.load("editor", editor, "pt.edit").config, "pt.edit")
    wanted = each_once(_edits(edits, say, config), say)
    folder = None if output is None else Path(output)
    if folder is not None:
        check_output(folder)
    session = _session(base, say)
    _write(session, wanted, config, batch, force)
    loaded = session.loaded._replace(name=name or f"{session.loaded.name} edited")
    if folder is not None:
        save_session(session, folder)
    return EditedModel(loaded, folder=folder, session=session)


def _session(base: Model | str | Path, say: Callable[[str], None]) -> EditSession:
    """Return a session on a copy of the base; on a model with edits it goes on with them. An adapter's folder is merged
    into its base. Raise ConfigError for a loaded adapter.
    """
    if not isinstance(base, Model):
        name = str(base)
        return open_session(name, say=say) if is_edits(name) else EditSession(load_to_edit(name), say=say)
    if isinstance(base, EditedModel):
        session = EditSession(base.session.untouched(), say=say)
        for one in base.session.applied:
            session.take(one)
        session.anchors.update(base.session.anchors)
        session.kept.update(base.session.kept)
        session.said = dict(base.session.said)
        return session
    if isinstance(base.model, PeftModel) or added_to(base.model) is not None:
        cause = "the base has an adapter on it, and edits are written into weights"
        mend = "name the adapter's folder: it is merged"
        raise ConfigError(Problem("pt.edit", cause, mend))
    model = copy.deepcopy(base.model)
    if base.folder is not None or base.cost:  # trained: it is no more what it was loaded from
        model.name_or_path = model.config.name_or_path = str(base.folder.resolve()) if base.folder is not None else ""
    return EditSession(base.loaded._replace(model=model), say=say)


def _edits(given: Any, say: Callable[[str], None], config: EditorConfig) -> list[Edit]:
    """Return edits, reading those in files. Raise ConfigError for something else."""
    if isinstance(given, Edit):
        return [given]
    if isinstance(given, list | tuple) and given and all(isinstance(one, Edit) for one in given):
        return list(given)
    each = [given] if isinstance(given, Mapping) else given
    if isinstance(each, list | tuple) and each and all(isinstance(one, Mapping) and "prompt" in one for one in each):
        return [_edit_of(one, f"edits:{number}") for number, one in enumerate(each, 1)]
    return edits_of(changes_of(given, say), subjects=config.needs_subject)


def _edit_of(row: Mapping[str, Any], location: str) -> Edit:
    """Return the edit of a mapping {prompt, subject, answer}. Raise ConfigError for other keys and for no texts."""
    if unknown := [key for key in row if key not in KEYS]:
        raise ConfigError(Problem(location, f"unknown key '{unknown[0]}'", f"keys of an edit: {', '.join(KEYS)}"))
    values = {key: row.get(key, "") for key in KEYS}
    for key, value in values.items():
        if not isinstance(value, str) or (key in ("prompt", "answer") and not value.strip()):
            cause = f"'{key}' must be a text" if key in row else f"'{key}' is missing"
            raise ConfigError(Problem(location, cause, 'an edit: {"prompt": "...", "subject": "...", "answer": "..."}'))
    return Edit(**values, location=location)


def _write(session: EditSession, edits: list[Edit], config: Any, batch: int | None, force: bool) -> None:
    assert isinstance(config, EditorConfig)
    if not edits:
        raise ConfigError(Problem("pt.edit", "there is nothing to edit", "give changes with targets"))
    if problems := session.ask_before(edits, config):
        raise ConfigError(*problems)
    session.apply(edits, config, batch=batch, force=force)
    ask_all(session)
