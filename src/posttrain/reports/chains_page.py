"""Chains: was what one step taught still there after each later one?

Of every method with steps, and of every method that starts from another one's model: the main scores after each step,
and how much of the reliability reached before is left.

    survived(i) = reliability after step i / the highest reliability after any earlier step
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from posttrain.reports import numbers
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.marks import Mark, label_of, mark_icon
from posttrain.reports.texts import Message, Words, say
from posttrain.reports.view import Entry, Line, Panel, Section, Table, heads_of, numeric

__all__ = ["chains_of", "chains_section", "survived"]

AFTER = "after-"
"""How the checkpoint after a step of a chain begins."""


class Step(NamedTuple):
    """A step of a chain and the row of its end; None where it has not been reached."""

    name: str
    row: Row | None


def chains_of(run: Run) -> dict[Version, tuple[Step, ...]]:
    """Return the steps of every model and method that is a chain, or starts from another method."""
    found: dict[Version, tuple[Step, ...]] = {}
    for model, method in run.versions:
        info = run.results.methods.get(method)
        if info is None:
            continue
        own = {row.checkpoint: row for row in run.rows_of(model, method) if row.scores}
        if info.steps:
            ends = [*(f"{AFTER}{name}" for name in info.steps[:-1]), "final"]
            found[model, method] = tuple(Step(name, own.get(end)) for name, end in zip(info.steps, ends, strict=True))
        elif info.start:
            found[model, method] = tuple(_starts(run, model, method))
    return {version: steps for version, steps in found.items() if any(step.row for step in steps)}


def _starts(run: Run, model: str, method: str) -> Iterator[Step]:
    """The method that a method starts from, and that one's, first to last."""
    info = run.results.methods.get(method)
    if info is not None and info.start:
        yield from _starts(run, model, info.start)
    rows = [row for row in run.rows_of(model, method) if row.scores and row.checkpoint == "final"]
    yield Step(method, rows[-1] if rows else None)


def survived(reliability: Sequence[float | None]) -> list[float | None]:
    """Return of each step how much is left of the highest reliability after any earlier step; None for the first one,
    and where nothing had been learned.
    """
    found: list[float | None] = []
    highest = 0.0
    for value in reliability:
        found.append(value / highest if value is not None and highest > 0 else None)
        highest = max(highest, value or 0.0)
    return found


def chains_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """A table for each chain; None where the run has none."""
    chains = chains_of(run)
    if not chains:
        return None
    panels = [
        Panel(label_of(version, run), mark_icon(marks[version]), table=_table(run, steps))
        for version, steps in chains.items()
    ]
    return Section("chains", say("chains.title"), (Panel(notes=(say("chains.about"),)), *panels))


def _table(run: Run, steps: Sequence[Step]) -> Table:
    rows = [step.row for step in steps]
    columns: list[tuple[Words, list[Entry]]] = []
    reliability = [None if row is None else row.scores.get("reliability") for row in rows]
    if any(value is not None for value in reliability):
        kept = [None if row is None or (lost := numbers.forgotten(row.scores)) is None else 1 - lost for row in rows]
        learned = [None if row is None else numbers.learned(row.scores) for row in rows]
        columns = [
            (say("chains.reliability"), _shares(reliability)),
            (say("chains.survived"), _shares(survived(reliability))),
            (say("merge.learned"), _shares(learned)),
            (say("merge.kept"), _shares(kept)),
        ]
    for exam in run.exams:
        values = [None if row is None else row.scores.get(exam.key) for row in rows]
        places = numbers.digits(value for value in values if value is not None)
        columns.append((exam.name, [numeric(value, partial(numbers.fixed, places=places)) for value in values]))
    lines = (
        Line((_named(number, step),), tuple(entries[number] for _, entries in columns))
        for number, step in enumerate(steps)
    )
    heads = heads_of(say("chains.step"), (name for name, _ in columns))
    return Table(say("scores.scroll"), heads, tuple(lines), "plain transfer")


def _named(number: int, step: Step) -> Message:
    """The step's number and name."""
    return say("verbatim", text=f"{number + 1}. {step.name.removeprefix(f'{number + 1}-')}")


def _shares(values: Sequence[float | None]) -> list[Entry]:
    return [numeric(value, numbers.percent) for value in values]
