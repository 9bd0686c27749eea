"""Rewrite facts in the model's weights: an editor finds the place of each target's subject and writes the new answer.

The targets of the changes are the edits; each needs a `subject`. Where the study teaches its changes one after another,
the model is examined on all that it was taught after every few of them, so that the results tell both what was there
right after an edit and what is left at the end.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import ByKind
from posttrain.editing.editors._base import EditorConfig
from posttrain.editing.edits import Edit, edits_of
from posttrain.editing.folders import rows_of, save_session
from posttrain.editing.said import answers_to, form_of, said_already
from posttrain.editing.session import LONGEST, EditSession
from posttrain.errors import ConfigError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.disk import write_whole
from posttrain.models.edit_delta import EDITS
from posttrain.registry import register
from posttrain.retention.replay.self import SelfReplayConfig
from posttrain.studies.candidates import END, Candidate, CellContext, Point
from posttrain.studies.config import MethodConfig

__all__ = ["EditConfig", "edit"]


class EditConfig(MethodConfig):
    """Facts rewritten in the weights."""

    kind: Literal["edit"] = "edit"
    """Facts are rewritten in the weights."""
    input_names = ()
    takes_sequence = True
    editor: Annotated[EditorConfig, ByKind("editor")]
    """Which editor, and its settings: memit, or {kind: memit, layers: [4, 5, 6]}."""
    batch: int | None = Field(None, gt=0)
    """Edits that are written together; when left out all of them, or those of one change where changes come one after
    another."""
    every: int | None = Field(None, gt=0)
    """Also examine the model after every so many edits, at the end of a batch."""
    force: bool = False
    """Write an edit that would break the model all the same."""

    @property
    def leaves_product(self) -> bool:
        return True

    @property
    def summary(self) -> str:
        return f"edited by {self.editor.kind}"

    @model_validator(mode="after")
    def _whole_batches(self) -> EditConfig:
        if self.every is not None and self.batch is None:
            return self.model_copy(update={"batch": self.every})
        if self.every is not None and self.batch is not None and self.every % self.batch:
            raise ValueError(f"every ({self.every}) must be a multiple of batch ({self.batch})")
        return self


@register("method", "edit", config=EditConfig)
def edit(config: EditConfig, cell: CellContext) -> Iterator[Candidate]:
    """Write the changes' targets into a copy of the model; a candidate after every few edits, and at the end."""
    edits = edits_of(cell.changes, subjects=config.editor.needs_subject)
    if config.every is not None and cell.sequence is not None:
        cause = "changes are taught one after another, and the model is examined after every so many of them"
        raise ConfigError(Problem("method 'edit': every", cause, "leave it out; see changes_as: {sequence: N}"))
    if problems := said_already(
        edits, answers_to(cell.bench.before, edits, form_of(config.editor, cell.bench.before.tokenizer))
    ):
        raise ConfigError(*problems)
    began = time.monotonic()
    session = _session(cell)
    groups = _groups(config, cell, edits)
    folder = cell.folder / "model"
    spent, done = 0.0, 0
    for number, (group, point, taught) in enumerate(groups):
        session.apply(group, config.editor, batch=config.batch, force=config.force, counted=(done, len(edits)))
        done += len(group)
        last = number + 1 == len(groups)
        if last:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(session))
            write_whole(cell.folder / EDITS, lines)
        if point is None or (not last and cell.examined(point)):
            continue
        if last and cell.keep != "none":
            save_session(session, folder)
        spent = time.monotonic() - began
        named = session.loaded._replace(name=cell.name(point))
        yield Candidate(
            point,
            ModelRespondent(named),
            cost={"train_s": spent, "steps": float(_steps(session)), "edits": float(done)},
            product=folder if last and cell.keep != "none" else None,
            notes=_notes(session) if last else (),
            changes=taught,
        )
        began += time.monotonic() - began - spent  # the time of the exams


def _session(cell: CellContext) -> EditSession:
    """Return a session on a working copy. Second moments come from the study's replay, without exams' prompts."""
    bench = cell.bench

    def texts() -> list[list[int]]:
        return [row.input_ids for row in bench.replay(SelfReplayConfig(), 0, LONGEST)]

    barred = hashlib.sha256("\0".join(sorted(bench.forbidden)).encode()).hexdigest()[:16]
    return EditSession(
        bench.working(),
        texts=texts,
        named=f"own answers without {barred}",
        seed=cell.seed,
        say=bench.say_once,
        fingerprint=bench.fingerprint,
    )


def _groups(
    config: EditConfig, cell: CellContext, edits: Sequence[Edit]
) -> list[tuple[Sequence[Edit], Point | None, int | None]]:
    """Return the edits in the groups after which something may be examined: the edits, the point or None, and how many
    of the cell's changes are taught by then (None for all).
    """
    if cell.sequence is None:
        step = config.every or len(edits)
        ends = [*range(step, len(edits), step), len(edits)]
        return [
            (edits[first:end], END if end == len(edits) else Point("edits", end), None)
            for first, end in zip([0, *ends], ends, strict=False)
        ]
    made: list[tuple[Sequence[Edit], Point | None, int | None]] = []
    total, first = len(cell.changes), 0
    for number, change in enumerate(cell.changes, 1):
        count = len(change.target)
        due = number % cell.sequence == 0
        point = END if number == total else Point("edits", first + count) if due else None
        made.append((edits[first : first + count], point, number))
        first += count
    return made


def _steps(session: EditSession) -> int:
    return sum(figures.steps for one in session.applied for figures in one.figures)


def _notes(session: EditSession) -> list[str]:
    """Return the lines of the card: the figures of all edits."""
    figures = [each for one in session.applied for each in one.figures]
    last = session.applied[-1].harm
    notes = [
        f"{len(figures)} edits by {session.applied[-1].editor.kind}: {sum(f.nats for f in figures) / len(figures):.2f} "
        f"nats per token of the answers, the largest change {max(f.share for f in figures):.2g} of the weights' norm",
        f"loss on other texts: {last.untouched:.3f} before, {last.after:.3f} nats per token at the end",
    ]
    skipped = [f for f in figures if f.skipped]
    if skipped:
        notes.append(f"{len(skipped)} edits were left out: {skipped[0].skipped}")
    return notes
