"""The small print: what stands below a table or a plot explains only what is there to be seen."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.reports import averaged, findings, numbers
from posttrain.reports.exam_page import row_label
from posttrain.reports.folder import Run
from posttrain.reports.texts import Message, say

__all__ = ["content_notes", "exam_notes", "more_name", "more_notes", "partly", "seen_notes", "words"]


def _groups(run: Run) -> set[str]:
    """Groups of scores that the change exam's tables show."""
    return {key.partition(".")[0] for row in run.shown for key in row.scores}


def partly(run: Run) -> Message | None:
    """How much of the study has been run, where that is not all: a fact, not a fault."""
    ran = len(run.trained_once)
    return say("intro.partly", k=ran, n=run.planned) if run.planned > ran and run.rows else None


def exam_notes(run: Run) -> Iterator[Message]:
    """Below the table of scores."""
    groups = _groups(run)
    rows = [row for row in run.shown if row.scores]
    over = averaged.over(rows)
    yield say("scores.about", changes=over) if len(run.changes) > 1 else say("scores.about_one")
    different = averaged.uneven(
        rows, lambda row: say("answers.noise_floor") if row.is_floor else f"`{row_label(row, run)}`"
    )
    if different is not None:
        yield different
    left = averaged.not_counted([cell for row in rows for cell in row.cells])
    if left is not None:
        yield left
    yield say("scores.better_leak" if "leak" in groups else "scores.better")
    if any(cell.samples for cell in run.cells):
        yield say("scores.choose")
    if "leak" in groups:
        yield say("scores.leak")
    if any(row.floor for row in run.rows):
        yield say("scores.floor")
    if any(row.unsure(key) for row in run.shown for key in row.floor):
        yield say("scores.unsure")


def words(run: Run) -> list[Message]:
    """What reliability, generality and locality are, as far as they were asked."""
    groups = _groups(run)
    return [say(f"intro.{name}") for name in ("reliability", "generality", "locality") if name in groups]


def content_notes(run: Run) -> list[Message]:
    """Below the graded comparison of contents."""
    groups = _groups(run)
    return [
        say("scores.content_about"),
        *(say(f"scores.{name}_about") for name in ("same", "kept", "manner", "judge") if name in groups),
    ]


def more_name(run: Run) -> Message:
    """The table of everything else is named by what it holds."""
    groups = _groups(run)
    every = all(name in groups for name in ("likelihood", "drift", "length"))
    return say("scores.more") if every else say("head.other")


def more_notes(run: Run) -> list[Message]:
    """Below likelihood, drift and length."""
    groups = _groups(run)
    return [say(f"scores.{name}_about") for name in ("drift", "likelihood") if name in groups]


def seen_notes(run: Run) -> list[Message]:
    """What the words of the sentences mean."""
    groups = _groups(run)
    notes = []
    if "reliability" in groups or "locality" in groups:
        notes.append(say("intro.seen_about"))
    if len([row for row in run.final if row.scores and not row.is_floor]) > 1:
        notes.append(say("intro.seen_shared"))
    if "reliability" in groups:
        notes.append(say("intro.seen_learned"))
    if "locality" in groups:
        kept, lost = numbers.percent(findings.KEPT), numbers.percent(findings.LOST)
        notes.append(say("intro.seen_kept", kept=kept, lost=lost))
    if any(row.compare for row in run.final):
        notes.append(say("intro.seen_exams"))
    return notes
