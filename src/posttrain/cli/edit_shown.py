"""What `posttrain edit` prints: what would be edited, what was, and what a folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.cli.options import console, emit, print_lines, table, talk
from posttrain.errors import shell_word as quoted
from posttrain.language import translate
from posttrain.models.meter import clock

if TYPE_CHECKING:
    from posttrain.editing.editors._base import EditorConfig
    from posttrain.editing.edits import Edit
    from posttrain.editing.session import EditSession, Harm

__all__ = ["plan", "report", "show"]

SHOWN = 10
"""Edits whose answers are printed, at most; those that are not said come first."""


def plan(
    session: EditSession, config: EditorConfig, edits: list[Edit], batch: int | None, gone: int, *, json: bool
) -> None:
    """Print what would be edited, where, and about how long it takes. gone: how many edits would be taken back."""
    from posttrain.editing.preview import preview

    seen = preview(session, config, edits, batch)
    if json:
        emit({"taken_back": gone, **seen._asdict()})
        return
    print_lines(f"taken back  {gone:,}" if gone else "")
    if not edits:
        return
    print_lines(
        f"edits       {seen.edits:,} (batches: {seen.batches:,}; rows of each edit: {seen.rows})",
        f"editor      {config.kind}",
        f"matrices    {', '.join(seen.weights)}",
        f"forms       {', '.join(seen.forms)}",
        f"time        about {clock(seen.wall_s)}, without second moments that are not cached",
    )


def show(folder: Path, *, json: bool) -> None:
    """Print the edits of a folder."""
    from posttrain.models.edit_delta import read_edits
    from posttrain.models.names import resolve

    rows = read_edits(Path(resolve(str(folder))))
    if json:
        emit(rows)
        return
    from rich.text import Text

    shown = table("number", "subject", "answer", "said", "editor", "nats", "share", "prompt")
    for row in rows:
        figures = row["figures"]
        cells = [str(row["number"]), row["subject"], row["answer"], _verdict(row), row["editor"]]
        cells += [f"{figures['nats']:.2f}", f"{figures['share']:.3f}", _question(row)]
        shown.add_row(*map(Text, cells))
    console(stderr=False).print(shown)
    talk(
        "said: whether the model gives the answer; nats: loss of the answer per token where it was searched; "
        "share: norm of the change over the norm of the weights"
    )


def _question(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"]
    return str(prompt if isinstance(prompt, str) else prompt[-1][1])


def _verdict(row: Mapping[str, Any]) -> str:
    right = row.get("said", {}).get("right")
    return "-" if right is None else translate("yes") if right else translate("no")


def report(session: EditSession, output: Path, new: int, harm: Harm, *, json: bool) -> None:
    """Print what was written, what the model answers now, and how to try it. harm: the loss on other texts before and
    after all that was done.
    """
    from posttrain.editing.folders import rows_of

    rows = rows_of(session)
    if json:
        emit({"output": str(output), "edits": rows, "loss_on_other_texts": harm._asdict()})
        return
    done = rows[len(rows) - new :] if new else []
    if done:
        right = sum(row["said"]["right"] for row in done)
        nats = sum(row["figures"]["nats"] for row in done) / len(done)
        told = f"{right} of {len(done)} new edits are said now ({nats:.2f} nats per token)"
        talk(f"{told}; edits in the folder: {len(rows)}")
        _answers(done)
        if right < len(done):
            talk("an edit is not said: try another editor (-e locft, -e ultraedit) or other layers (posttrain trace)")
    lost = sum(not row["said"]["right"] for row in rows[: len(rows) - new])
    if lost:
        talk(f"of {len(rows) - new} earlier edits, {lost} are not said now: see --list")
    talk(f"loss on other texts: {harm.untouched:.3f} before all edits, {harm.after:.3f} nats per token now")
    print(output)
    talk(f"try it: posttrain chat {quoted(str(output))}")
    if done:
        talk(f"what else has changed: posttrain exam {quoted(str(output))} --change FILE")


def _answers(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print questions with the answers before and now, on stderr."""
    from rich.text import Text

    first = sorted(rows, key=lambda row: bool(row["said"]["right"]))[:SHOWN]
    shown = table("said", "prompt", "before", "wanted", "now")
    for row in sorted(first, key=lambda row: int(row["number"])):
        said = row["said"]
        texts = [_question(row), said["before"], row["answer"], said["now"]]
        shown.add_row(*map(Text, [_verdict(row), *(" ".join(text.split()) for text in texts)]))
    console().print(shown)
    if len(first) < len(rows):
        talk(f"{len(first)} of {len(rows)} are shown; all: posttrain edit FOLDER --list --json")
