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
            metavar="CHANGES...",
            help="Change files (or globs) whose targets are written; or rows: prompt, subject, answer (.jsonl, .csv).",
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
    from posttrain.editing.edits import each_once
    from posttrain.editing.folders import check_output, is_edits, save_session
    from posttrain.editing.said import conflicts
    from posttrain.models.disk import alone_in
    from posttrain.models.names import say_taken
    from posttrain.studies.edit_verdicts import ask_all

    say_taken(model, talk)
    if (listed or undo) and not is_edits(model):
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
    wanted = each_once([*wanted, *_spoken(prompt, subject, answer, forget, config)], talk)
    if problems := conflicts(wanted):
        raise ConfigError(*problems)
    if not wanted and not undo:
        raise ConfigError(
            Problem("CHANGES", "no edits are named", "name change files: posttrain edit MODEL changes/*.yaml")
        )
    if output is None and not dry_run:
        raise ConfigError(Problem("--output", "no folder for the edits", "say it: --output edits/mine"))
    numbers = _numbers(undo) if undo else None
    when_stopped(lambda: NOT_WRITTEN)
    how: dict[str, Any] = {"offline": not download, "trust_remote_code": trust_remote_code, "dtype": precision}
    with shown_works(), alone_in(None if dry_run else output):
        if output is not None:
            check_output(output)
        work = _opened(model, output, wanted, config, numbers, how)
        session = work.session
        start = session.harm() if not dry_run else None
        again = numbers is not None and not work.goes_on
        gone = _taken_back(session, numbers or []) if again else 0  # in memory: a dry run writes nothing
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
    """The session, the edits that it still has to write, how many an interrupted call has written before, and whether
    it goes on with what that call has left in the output.
    """

    session: EditSession
    wanted: list[Edit]
    before: int = 0
    goes_on: bool = False


def _opened(
    model: str,
    output: Path | None,
    wanted: list[Edit],
    config: EditorConfig,
    undo: list[int] | None,
    how: dict[str, Any],
) -> _Work:
    """Open what is edited: a model, a folder of edits to go on with, or what an interrupted call has left in `output`.
    undo: the edits that are taken back first, [] for all. Raise ConfigError if `output` holds other edits: they would
    be lost.
    """
    from posttrain.editing.folders import begun, holds_edits, is_edits, load_to_edit, open_session, written_in
    from posttrain.editing.session import EditSession
    from posttrain.models.load import adapter_base
    from posttrain.models.names import resolve

    folder = Path(resolve(model)).resolve()
    known, base = {}, model
    if is_edits(model):
        known, base = written_in(folder), adapter_base(folder) or ""
    gone = set(known if undo == [] else undo or [])
    start = [one for number, one in known.items() if number not in gone]
    held = {(one.prompt, one.answer.strip()) for one in start}
    left = [edit for edit in wanted if edit.statement not in held]
    if len(left) < len(wanted):
        talk(f"{len(wanted) - len(left)} of {len(wanted)} edits are there already")
    if output is not None and holds_edits(output) and output.resolve() != folder:
        count = begun(output, base, start, config, left)
        if count is not None:
            if left:
                talk(f"{count} of {len(left)} edits are in {output} already")
            return _Work(open_session(str(output), say=talk, **how), left[count:], count, goes_on=True)
        if not all(one in known.values() for one in written_in(output).values()):
            mend = f"choose a new folder, or go on with these: posttrain edit {quoted(str(output))} ..."
            raise ConfigError(Problem(str(output), "it holds other edits", mend))
    if not is_edits(model):
        return _Work(EditSession(load_to_edit(model, **how), say=talk), left)
    return _Work(open_session(model, say=talk, **how), left)


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


def _spoken(
    prompt: str | None, subject: str, answer: str | None, forget: Forget | None, config: EditorConfig
) -> list[Edit]:
    """Return the edit of --prompt, --subject and --answer, or of --forget instead of an answer. Raise ConfigError if
    one that it needs is missing.
    """
    from posttrain.config.change import forgotten
    from posttrain.editing.edits import Edit

    if prompt is None and answer is None and not subject:
        return []
    if forget is not None and answer is not None:
        raise ConfigError(Problem("--answer", "--forget says the answer", "leave one of the two out"))
    if forget is not None and prompt is not None:
        answer = forgotten(prompt, forget)[0]
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
    """Return the numbers of --undo, an empty list for `all`. Raise ConfigError for anything else, also beside `all`."""
    wrong = [word for word in undo if word != "all" and not (word.isascii() and word.isdigit())]
    if wrong or ("all" in undo and len(undo) > 1):
        cause = f"'{wrong[0]}' is no number of an edit" if wrong else "all stands beside numbers"
        raise ConfigError(Problem("--undo", cause, "see: posttrain edit FOLDER --list"))
    return [] if undo == ["all"] else [int(word) for word in undo]


def _taken_back(session: EditSession, numbers: list[int]) -> int:
    """Take edits back, all without numbers, and return how many. Raise the errors of `EditSession.undo`."""
    before = sum(len(one.numbers) for one in session.applied)
    session.undo(*numbers)
    return before - sum(len(one.numbers) for one in session.applied)
