"""The small print below tables and plots. It explains only what the page shows."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.reports import averaged, findings, numbers
from posttrain.reports.exam_page import row_label
from posttrain.reports.folder import Run
from posttrain.reports.texts import Message, say, say_if

__all__ = ["content_notes", "exam_notes", "more_name", "more_notes", "partly", "seen_notes", "words"]


def _groups(run: Run) -> set[str]:
    """Return the groups of scores that the tables of the change exam show."""
    return {numbers.group_of(key) for row in run.shown for key in row.scores}


def partly(run: Run) -> Message | None:
    """Say how much of the study has been run; None where all has."""
    ran = len(run.trained_once)
    return say("intro.partly", k=ran, n=run.results.planned) if run.results.planned > ran and run.rows else None


def exam_notes(run: Run) -> Iterator[Message]:
    """Yield what stands below the table of scores."""
    groups = _groups(run)
    rows = [row for row in run.shown if row.scores]
    over = averaged.over(rows)
    yield say("scores.about", changes=over) if len(run.changes) > 1 else say("scores.about_one")
    different = averaged.uneven(
        rows, lambda row: say("answers.noise_floor") if row.is_floor else f"`{row_label(row, run)}`"
    )
    left = averaged.not_counted([cell for row in rows for cell in row.cells])
    yield from (one for one in (different, left) if one is not None)
    yield from say_if(
        {
            "scores.better_leak": "leak" in groups,
            "scores.better": "leak" not in groups,
            "scores.choose": any(cell.samples for cell in run.cells),
            "scores.leak": "leak" in groups,
            "scores.floor": any(row.floor for row in run.rows),
            "scores.unsure": any(row.unsure(key) for row in run.shown for key in row.floor),
        }
    )


def words(run: Run) -> list[Message]:
    """Say what reliability, generality and locality are, as far as they were asked."""
    groups = _groups(run)
    return [say(f"intro.{name}") for name in ("reliability", "generality", "locality") if name in groups]


def content_notes(run: Run) -> tuple[Message, ...]:
    """Return what stands below the graded comparison of contents."""
    groups = _groups(run)
    about = {f"scores.{name}_about": name in groups for name in ("same", "kept", "manner", "judge")}
    return say_if({"scores.content_about": True, **about})


def more_name(run: Run) -> Message:
    """Name the table of everything else by what it holds."""
    return say("scores.more" if _groups(run) >= {"likelihood", "drift", "length"} else "head.other")


def more_notes(run: Run) -> tuple[Message, ...]:
    """Return what stands below likelihood, drift and length."""
    return say_if({f"scores.{name}_about": name in _groups(run) for name in ("drift", "likelihood")})


def seen_notes(run: Run) -> list[Message]:
    """Say what the words of the findings mean."""
    groups = _groups(run)
    several = len([row for row in run.final if row.scores and not row.is_floor]) > 1
    notes = [
        *say_if({"intro.seen_about": groups & {"reliability", "locality"}, "intro.seen_shared": several}),
        *say_if({"intro.seen_learned": "reliability" in groups}),
    ]
    if "locality" in groups:
        kept, lost = numbers.percent(findings.KEPT), numbers.percent(findings.LOST)
        notes.append(say("intro.seen_kept", kept=kept, lost=lost))
    chose = ", ".join(f"`{exam.name}`" for exam in run.results.exams.values() if exam.role == "select")
    selecting = [say("intro.seen_select", names=chose)] if chose else []
    return [*notes, *say_if({"intro.seen_exams": any(row.compare for row in run.final)}), *selecting]
