"""`posttrain edit`: rewrite facts in a model's weights, see what was rewritten, take it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from posttrain import registry
from posttrain.cli.options import (
    DownloadOption,
    DryRunOption,
    JsonOption,
    OutputOption,
    PrecisionOption,
    SetOption,
    TrustOption,
    console,
    emit,
    print_lines,
    table,
    talk,
)
from posttrain.cli.stopping import NOT_WRITTEN, when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, Problem
from posttrain.errors import shell_word as quoted
from posttrain.models.meter import clock

if TYPE_CHECKING:
    from posttrain.config.change import Forget
    from posttrain.editing.editors._base import EditorConfig
    from posttrain.editing.edits import Edit
    from posttrain.editing.session import EditSession, Harm

EDITOR = "memit"


def edit(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, folder, pocket:chat, or a folder of edits to go on with.")
    ],
    edits: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHANGES...", help="Change files (or globs) whose targets are written; each has a subject."
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
    from posttrain.editing.folders import check_output, is_edits, load_to_edit, open_session
    from posttrain.editing.session import EditSession
    from posttrain.models.names import say_taken

    say_taken(model, talk)
    how: dict[str, Any] = {"offline": not download, "trust_remote_code": trust_remote_code, "dtype": precision}
    known = is_edits(model)
    if (listed or undo) and not known:
        option = "--list" if listed else "--undo"
        raise ConfigError(
            Problem(option, f"{model} is no folder of edits", "name the folder that `posttrain edit` wrote")
        )
    if listed:
        if undo or edits:
            raise ConfigError(Problem("--list", "it only shows what the folder holds", "leave out CHANGES and --undo"))
        _show(Path(model), json=json)
        return
    config = _configured(editor, sets or [])
    wanted = _edits(edits or [], forget) if edits else []
    if not wanted and not undo:
        raise ConfigError(
            Problem("CHANGES", "no edits are named", "name change files: posttrain edit MODEL changes/*.yaml")
        )
    if output is None and not dry_run:
        raise ConfigError(Problem("--output", "no folder for the edits", "say it: --output edits/mine"))
    if output is not None:
        check_output(output)
    when_stopped(lambda: NOT_WRITTEN)
    with shown_works():
        session = open_session(model, say=talk, **how) if known else EditSession(load_to_edit(model, **how), say=talk)
        start = session.harm() if not dry_run else None
        gone = _taken_back(session, undo) if undo else 0  # in memory: a dry run writes nothing
        if dry_run:
            _plan(session, config, wanted, batch, gone, json=json)
            return
        if undo:
            talk(f"{gone} taken back" if "all" not in undo else "all edits are taken back")
        _refuse_known(session, wanted)
        if wanted:
            session.apply(wanted, config, batch=batch, force=force)
        assert output is not None
        assert start is not None
        _save(session, output)
        harm = session.harm()._replace(before=start.before)
    _report(session, output, len(wanted), harm, json=json)


def _configured(editor: str, sets: list[str]) -> EditorConfig:
    """Return the editor's settings. Raise ConfigError for an unknown editor and for settings that it does not have."""
    from posttrain.config.load import apply_sets, check

    entry = registry.load("editor", editor, "--editor")
    node: dict[str, Any] = {"kind": editor}
    given = apply_sets(node, sets)
    config: EditorConfig = check(node, entry.config, f"editor {editor}", given)
    return config


def _edits(patterns: list[str], forget: Forget | None) -> list[Edit]:
    from posttrain.data.changes import load_changes
    from posttrain.editing.edits import edits_of

    changes = load_changes(patterns, Path(), "CHANGES")
    return edits_of([change.forgetting(forget) for change in changes] if forget else changes)


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


def _refuse_known(session: EditSession, edits: list[Edit]) -> None:
    """Raise ConfigError for edits that say what the model says already."""
    from posttrain.editing.session import said_already

    problems = said_already(session.respondent, edits)
    if problems:
        raise ConfigError(*problems)


def _save(session: EditSession, output: Path) -> None:
    from posttrain.editing.folders import save_session

    save_session(session, output)


def _plan(
    session: EditSession, config: EditorConfig, edits: list[Edit], batch: int | None, gone: int, *, json: bool
) -> None:
    """Print what would be edited, where, and about how long it takes. gone: how many edits would be taken back."""
    from posttrain.editing.session import preview

    seen = preview(session, config, edits, batch)
    if json:
        emit({"taken_back": gone, **seen._asdict()})
        return
    print_lines(f"taken back  {gone:,} edits" if gone else "")
    if not edits:
        return
    print_lines(
        f"edits       {seen.edits:,} in {seen.batches:,} batches, {seen.rows} rows each",
        f"editor      {config.kind}",
        f"matrices    {', '.join(seen.weights)}",
        f"forms       {', '.join(seen.forms)}",
        f"time        about {clock(seen.wall_s)}, without second moments that are not cached",
    )


def _show(folder: Path, *, json: bool) -> None:
    """Print the edits of a folder."""
    from posttrain.models.edit_delta import read_edits
    from posttrain.models.names import resolve

    rows = read_edits(Path(resolve(str(folder))))
    if json:
        emit(rows)
        return
    from rich.text import Text

    shown = table("number", "subject", "answer", "editor", "nats", "share", "prompt")
    for row in rows:
        figures = row["figures"]
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1][1]
        cells = [str(row["number"]), row["subject"], row["answer"], row["editor"], f"{figures['nats']:.2f}"]
        shown.add_row(*map(Text, [*cells, f"{figures['share']:.3f}", prompt]))
    console(stderr=False).print(shown)
    talk("nats: loss of the answer per token; share: norm of the change over the norm of the weights")


def _report(session: EditSession, output: Path, new: int, harm: Harm, *, json: bool) -> None:
    """Print what was written, and how to try it. harm: the loss on other texts before and after all that was done."""
    from posttrain.editing.folders import rows_of

    rows = rows_of(session)
    if json:
        emit({"output": str(output), "edits": rows, "loss_on_other_texts": harm._asdict()})
        return
    done = rows[len(rows) - new :] if new else []
    if done:
        nats = sum(row["figures"]["nats"] for row in done) / len(done)
        talk(f"{len(done)} edits written, {nats:.2f} nats per token of their answers; {len(rows)} in the folder")
    talk(f"loss on other texts: {harm.untouched:.3f} before all edits, {harm.after:.3f} nats per token now")
    print(output)
    talk(f"try it: posttrain chat {quoted(str(output))}")
