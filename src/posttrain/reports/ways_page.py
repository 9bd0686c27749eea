"""The sections on methods with several models: chains of steps, and trained weights merged with the weights before.

The section on chains covers every method with steps, and every method that starts from the model of another method. It
shows the main scores after each step, and whether later steps preserve what an earlier step taught:

    survived(i) = reliability after step i / the highest reliability after any earlier step

The section on merged weights covers every method that was merged with the model before. It shows the learned and the
kept share at each share of the trained weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from posttrain.reports import numbers
from posttrain.reports.charts import SHARES, Chart, Layers, Rows, Said
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.marks import Mark, label_of, mark_icon, marks_of
from posttrain.reports.texts import Message, Words, say, say_known
from posttrain.reports.view import Entry, Line, Panel, Section, Table, fixed_column, heads_of, numeric

__all__ = ["chains_of", "chains_section", "merge_section", "survived", "ways_of"]

MERGE = re.compile(r"^blend-(\d\.\d+)$")
"""The name of a checkpoint with merged weights; group 1 is the share of the trained weights."""
Way = Mapping[str, tuple[tuple[float, float], ...]]
"""Score -> (a, value) at each share a of the trained weights."""


class Step(NamedTuple):
    """A step of a chain, and the row of the model after it; None when the step has not been finished."""

    name: str
    row: Row | None


def _main(scores: Mapping[str, float], run: Run) -> dict[str, float | None]:
    """Return the learned and kept shares of the change exam, and the headlines of the other exams; None if unknown."""
    change = {"learned": numbers.learned(scores), "kept": numbers.kept(scores)}
    return change | {exam.key: scores.get(exam.key) for exam in run.exams}


# ---- chains --------------------------------------------------------------------------------------------------------


def chains_of(run: Run) -> dict[Version, tuple[Step, ...]]:
    """Return the steps of every model and method that has steps or starts from another method."""
    found: dict[Version, tuple[Step, ...]] = {}
    for model, method in run.versions:
        info = run.results.methods.get(method)
        if info is None:
            continue
        own = {row.checkpoint: row for row in run.rows_of(model, method) if row.scores}
        if info.steps:
            ends = [*(f"after-{name}" for name in info.steps[:-1]), "final"]
            last = _last_change(own)
            rows = (own.get(f"{last}.{end}", own.get(end)) for end in ends)
            found[model, method] = tuple(map(Step, info.steps, rows))
        elif info.start:
            found[model, method] = tuple(_starts(run, model, method))
    return {version: steps for version, steps in found.items() if any(step.row for step in steps)}


def _last_change(points: Iterable[str]) -> str:
    """Return `3-tallest` when that is the last change of a sequence, in which each change has steps of its own
    (`3-tallest.after-1-train`); an empty text for other points.
    """
    changes = (change for change, found, _ in (name.partition(".after-") for name in points) if found)
    return max(changes, key=lambda name: int(name.partition("-")[0]), default="")


def _starts(run: Run, model: str, method: str) -> Iterator[Step]:
    """Yield a step for each method from which a method starts, directly or indirectly, and last for itself."""
    info = run.results.methods.get(method)
    if info is not None and info.start:
        yield from _starts(run, model, info.start)
    rows = [row for row in run.rows_of(model, method) if row.scores and row.checkpoint == "final"]
    yield Step(method, rows[-1] if rows else None)


def survived(reliability: Sequence[float | None]) -> list[float | None]:
    """Return, for each step, its reliability divided by the highest one after any earlier step. None for a step without
    reliability, and where the highest earlier one is 0, as for the first step.
    """
    found: list[float | None] = []
    highest = 0.0
    for value in reliability:
        found.append(value / highest if value is not None and highest > 0 else None)
        highest = max(highest, value or 0.0)
    return found


def chains_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return the section with a table for each chain; None when the run has no chains."""
    chains = chains_of(run)
    panels = [
        Panel(label_of(version, run), mark_icon(marks[version]), table=_chain_table(run, steps))
        for version, steps in chains.items()
    ]
    about = Panel(notes=(say("chains.about"),))
    return Section("chains", say("chains.title"), (about, *panels)) if panels else None


def _chain_table(run: Run, steps: Sequence[Step]) -> Table:
    each = [step.row.scores if step.row else {} for step in steps]
    scores = [_main(one, run) for one in each]
    reliability = [one.get("reliability") for one in each]
    columns: list[tuple[Words, Sequence[Entry]]] = []
    if any(value is not None for value in reliability):
        shares = (
            (say("chains.reliability"), reliability),
            (say("chains.survived"), survived(reliability)),
            (say("merge.learned"), [one["learned"] for one in scores]),
            (say("merge.kept"), [one["kept"] for one in scores]),
        )
        columns += [(name, [numeric(value, numbers.percent) for value in values]) for name, values in shares]
    columns += [(exam.name, fixed_column([one[exam.key] for one in scores])) for exam in run.exams]
    lines = []
    for number, step in enumerate(steps):
        name = say("verbatim", text=f"{number + 1}. {step.name.removeprefix(f'{number + 1}-')}")
        lines.append(Line((name,), tuple(entries[number] for _, entries in columns)))
    heads = heads_of(say("chains.step"), (name for name, _ in columns))
    return Table(say("scores.scroll"), heads, tuple(lines), "plain transfer")


# ---- weights between -----------------------------------------------------------------------------------------------


def _share(row: Row) -> float | None:
    """Return a checkpoint's share of the trained weights, 0 (before) to 1 (trained); None for other checkpoints."""
    match = MERGE.match(row.checkpoint)
    return float(match[1]) if match else 1.0 if row.checkpoint == "final" else None


def ways_of(run: Run) -> dict[Version, Way]:
    """Return the scores of every model and method with merged weights, and of both ends as far as they are known."""
    ways: dict[Version, Way] = {}
    for version in run.versions:
        rows = [row for row in run.rows_of(*version) if row.scores]
        if not any(MERGE.match(row.checkpoint) for row in rows):
            continue
        untouched = run.untouched(version[0])
        start = dict(untouched.scores) if untouched else {}
        if any(numbers.kept(row.scores) is not None for row in rows):
            start["kept"] = 1.0  # answers are compared with its own, so it keeps all of them
        points: list[tuple[float, Mapping[str, float | None]]] = [(0.0, start)]
        points += [(a, _main(row.scores, run)) for row in rows if (a := _share(row)) is not None]
        way = {
            name: tuple(sorted((a, value) for a, scores in points if (value := scores.get(name)) is not None))
            for name in ("learned", "kept", *(exam.key for exam in run.exams))
        }
        ways[version] = {name: found for name, found in way.items() if found}
    return ways


def merge_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return the section: a chart of all methods, then the numbers of each; None when no weights were merged."""
    ways = ways_of(run)
    if not ways:
        return None
    said = {name: say_known(f"merge.{name}", name) for way in ways.values() for name in way}
    drawn = [n for n in said if all(0 <= value <= 1 for way in ways.values() for _, value in way.get(n, ()))]
    keys: list[str | Version] = [*run.versions, *drawn]  # so no score has the mark of a method
    own = marks_of(keys)
    labels = {version: label_of(version, run) for version in ways}
    named = {labels[version]: way for version, way in ways.items()}
    chart = over_weights(named, said, {name: own[name] for name in drawn}) if drawn else None
    left_out = [name for name in said if name not in drawn]
    about = [say("merge.about"), *([say("merge.left_out", names=", ".join(left_out))] if left_out else [])]
    panels = (
        Panel(labels[v], mark_icon(marks[v]), table=_way_table(way, said), kind="beside") for v, way in ways.items()
    )
    return Section("merge", say("merge.title"), (Panel(notes=tuple(about), chart=chart), *panels))


def over_weights(ways: Mapping[str, Way], names: Mapping[str, Message], marks: Mapping[str, Mark]) -> Chart:
    """Draw scores in per cent over the share of trained weights, 0 (before) to 1, with a panel for each method."""
    on = Layers("score", {Said(names[key]): mark for key, mark in marks.items()})
    rows: Rows = [
        {"kind": "point", "panel": label, "score": Said(names[key]), "a": a, "value": 100 * v, "text": f"{v:.4g}"}
        for label, way in ways.items() for key in marks for a, v in way.get(key, ())
    ]  # fmt: skip
    x = on.number("a", "merge.axis", values=[0, 0.25, 0.5, 0.75, 1], format=".2~f", scale={"domain": [0, 1]})
    y = on.number("value", values=SHARES, scale={"domain": [0, 100]})
    on.add("point", "line", "line", x=x, y=y)
    tips = on.tips(panel="scores.method", score="exams.score", a="merge.share", text="details.env_value")
    on.add("point", "point", "point", x=x, y=y, tooltip=tips)
    return replace(on.panels(rows, say("merge.title")), names=tuple(marks))


def _way_table(way: Way, names: Mapping[str, Message]) -> Table:
    shares = sorted({a for points in way.values() for a, _ in points})
    lines = tuple(
        Line((names[name],), tuple(fixed_column([dict(points).get(a) for a in shares]))) for name, points in way.items()
    )
    return Table(
        say("scores.scroll"), heads_of(say("merge.share"), (f"{a:g}" for a in shares)), lines, "plain transfer"
    )
