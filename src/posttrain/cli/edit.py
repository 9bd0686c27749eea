"""`posttrain edit`: rewrite facts in a model's weights, see what was rewritten, take it back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from posttrain import registry
from posttrain.cli.edit_shown import plan, report, show
from posttrain.cli.options import (
    DownloadOption,
    DryRunOption,
    JsonOption,
    OutputOption,
    PrecisionOption,
    SetOption,
    TrustOption,
    talk,
)
from posttrain.cli.stopping import NOT_WRITTEN, when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, DataError, Interrupted, Problem
from posttrain.errors import shell_word as quoted

if TYPE_CHECKING:
    from posttrain.config.change import Forget
    from posttrain.editing.editors._base import EditorConfig
    from posttrain.editing.edits import Edit
    from posttrain.editing.session import EditSession

EDITOR = "memit"
SAVED_S = 300.0
"""Seconds after which the finished batches of a long call are saved again."""


def edit(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, folder, pocket:chat, or a folder of edits to go on with.")
    ],
    edits: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHANGES...", help="Change files (or globs) whose targets are written; most editors need a subject."
        ),
    ] = None,
    editor: Annotated[
        str,
        typer.Option(
            "--editor",
            "-e",
            metavar="KIND",
            help=f"{', '.join(registry.kinds('editor'))}: see posttrain list editors.",
        ),
    ] = EDITOR,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, help="Write N edits at a time; all together when left out."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write an edit that would break the model all the same.")
    ] = False,
    forget: Annotated[
        Literal["unknown", "refusal"] | None,
        typer.Option(
            "--forget", help="Write, instead of the changes' answers, that this is not known, or not answered."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Only show what a folder of edits holds.")] = False,
    undo: Annotated[
        list[str] | None,
        typer.Option("--undo", metavar="N|all", help="Take edit N of a folder of edits back; may be repeated."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="One edit without a file: the words of the user.")
    ] = None,
    subject: Annotated[str, typer.Option("--subject", help="The words of --prompt that the fact is about.")] = "",
    answer: Annotated[str | None, typer.Option("--answer", help="What shall be said after --prompt.")] = None,
    output: OutputOption = None,
    sets: SetOption = None,
    precision: PrecisionOption = "auto",
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Rewrite facts in a model's weights. The folder of edits that is written is small and loads as a model anywhere.

    --set reaches the editor's settings: --set layers=[4,5] --set target.steps=20. `posttrain model export` merges a
    folder of edits into the weights, or with --adapter writes it as a LoRA adapter for plain PEFT.
    """
    from posttrain.editing.folders import check_output, is_edits, save_session
    from posttrain.editing.said import conflicts
    from posttrain.models.names import say_taken
    from posttrain.studies.edit_verdicts import ask_all

    say_taken(model, talk)
    known = is_edits(model)
    if (listed or undo) and not known:
        option = "--list" if listed else "--undo"
        raise ConfigError(
            Problem(option, f"{model} is no folder of edits", "name the folder that `posttrain edit` wrote")
        )
    if listed:
        if undo or edits:
            raise ConfigError(Problem("--list", "it only shows what the folder holds", "leave out CHANGES and --undo"))
        show(Path(model), json=json)
        return
    config = _configured(editor, sets or [])
    wanted = _edits(edits, forget, config) if edits else []
    wanted += _spoken(prompt, subject, answer, config)
    if problems := conflicts(wanted):
        raise ConfigError(*problems)
    if not wanted and not undo:
        raise ConfigError(
            Problem("CHANGES", "no edits are named", "name change files: posttrain edit MODEL changes/*.yaml")
        )
    if output is None and not dry_run:
        raise ConfigError(Problem("--output", "no folder for the edits", "say it: --output edits/mine"))
    if output is not None:
        check_output(output)
    when_stopped(lambda: NOT_WRITTEN)
    how: dict[str, Any] = {"offline": not download, "trust_remote_code": trust_remote_code, "dtype": precision}
    with shown_works():
        work = _opened(model, output, wanted, config, how)
        session = work.session
        start = session.harm() if not dry_run else None
        gone = _taken_back(session, undo) if undo else 0  # in memory: a dry run writes nothing
        work = _without_written(work) if known else work
        if dry_run:
            plan(session, config, work.wanted, batch, gone, json=json)
            return
        if undo:
            talk(f"edits taken back: {', '.join(undo)}" if "all" not in undo else "all edits are taken back")
        assert output is not None
        assert start is not None
        _write(work, config, output, batch=batch, force=force)
        ask_all(session)
        save_session(session, output)
        harm = session.harm()._replace(before=start.before)
    report(session, output, len(work.wanted), harm, json=json)


class _Work(NamedTuple):
    """The session, the edits that it still has to write, and how many an interrupted call has written before."""

    session: EditSession
    wanted: list[Edit]
    before: int = 0


def _opened(model: str, output: Path | None, wanted: list[Edit], config: EditorConfig, how: dict[str, Any]) -> _Work:
    """Open what is edited: a model, a folder of edits to go on with, or what an interrupted call has left in `output`.
    Raise ConfigError if `output` holds other edits: they would be lost.
    """
    from posttrain.editing.folders import begun, holds_edits, holds_no_more, is_edits, load_to_edit, open_session
    from posttrain.editing.session import EditSession
    from posttrain.models.names import resolve

    folder, known = Path(resolve(model)).resolve(), is_edits(model)
    if output is not None and holds_edits(output) and output.resolve() != folder:
        count = begun(output, model, config, wanted) if not known else None
        if not holds_no_more(output, folder, wanted) if known else count is None:
            mend = f"choose a new folder, or go on with these: posttrain edit {quoted(str(output))} ..."
            raise ConfigError(Problem(str(output), "it holds other edits", mend))
        if count is not None:
            talk(f"{count} of {len(wanted)} edits are in {output} already")
            return _Work(open_session(str(output), say=talk, **how), wanted[count:], count)
    if not known:
        return _Work(EditSession(load_to_edit(model, **how), say=talk), wanted)
    return _Work(open_session(model, say=talk, **how), wanted)


def _without_written(work: _Work) -> _Work:
    """Return the work without edits that the session has already, with the same answer."""
    held = {edit.statement for one in work.session.applied for edit in one.edits}
    left = [edit for edit in work.wanted if edit.statement not in held]
    if len(left) < len(work.wanted):
        talk(f"{len(work.wanted) - len(left)} of {len(work.wanted)} edits are there already")
    return work._replace(wanted=left)


def _write(work: _Work, config: EditorConfig, output: Path, *, batch: int | None, force: bool) -> None:
    """Write the edits. After Ctrl-C, the batches that are finished are saved; also every few minutes, for harder ends.
    Raise ConfigError for edits that the model says already.
    """
    from posttrain.editing.folders import save_session

    session, wanted = work.session, work.wanted
    if not wanted:
        return
    if problems := session.ask_before(wanted, config):
        raise ConfigError(*problems)
    first, total = session.next_number, work.before + len(wanted)
    saved = time.monotonic()

    def kept(done: int) -> None:
        nonlocal saved
        if done < len(wanted) and time.monotonic() - saved > SAVED_S:
            save_session(session, output)
            saved = time.monotonic()

    try:
        session.apply(wanted, config, batch=batch, force=force, after=kept, counted=(work.before, total))
    except (KeyboardInterrupt, Interrupted) as error:
        done = session.next_number - first
        if not done:
            raise
        save_session(session, output)
        cause = f"stopped: {work.before + done} of {total} edits are in {output}"
        raise Interrupted(Problem("", cause, "run the same command to go on")) from error


def _spoken(prompt: str | None, subject: str, answer: str | None, config: EditorConfig) -> list[Edit]:
    """Return the edit of --prompt, --subject and --answer. Raise ConfigError if one that it needs is missing."""
    from posttrain.editing.edits import Edit

    if prompt is None and answer is None and not subject:
        return []
    if prompt is None or answer is None or (config.needs_subject and not subject.strip()):
        missing = "--prompt" if prompt is None else "--answer" if answer is None else "--subject"
        mend = 'say all three: --prompt "The capital of France is" --subject France --answer Rome'
        raise ConfigError(Problem(missing, "it is missing", mend))
    try:
        return [Edit(prompt, subject, answer, location="--prompt")]
    except DataError as error:
        raise ConfigError(*error.problems) from error


def _configured(editor: str, sets: list[str]) -> EditorConfig:
    """Return the editor's settings. Raise ConfigError for an unknown editor and for settings that it does not have."""
    from posttrain.config.load import apply_sets, check

    entry = registry.load("editor", editor, "--editor")
    node: dict[str, Any] = {"kind": editor}
    given = apply_sets(node, sets)
    config: EditorConfig = check(node, entry.config, f"editor {editor}", given)
    return config


def _edits(patterns: list[str], forget: Forget | None, config: EditorConfig) -> list[Edit]:
    from posttrain.data.changes import load_changes
    from posttrain.editing.edits import edits_of

    changes = load_changes(patterns, Path(), "CHANGES")
    changes = [change.forgetting(forget) for change in changes] if forget else changes
    return edits_of(changes, subjects=config.needs_subject)


def _numbers(undo: list[str]) -> list[int]:
    """Return the numbers of --undo, none for `all`. Raise ConfigError for anything else."""
    if "all" in undo:
        return []
    wrong = [word for word in undo if not word.isdecimal()]
    if wrong:
        raise ConfigError(
            Problem("--undo", f"'{wrong[0]}' is no number of an edit", "see: posttrain edit FOLDER --list")
        )
    return [int(word) for word in undo]


def _taken_back(session: EditSession, undo: list[str]) -> int:
    """Take edits back, and return how many. Raise the errors of `_numbers` and of `EditSession.undo`."""
    before = sum(len(one.numbers) for one in session.applied)
    session.undo(*_numbers(undo))
    return before - sum(len(one.numbers) for one in session.applied)
