"""The sections on methods with several models: chains of steps, weights merged with those before, steering strengths.

The section on chains covers every method with steps, and every method that starts from the model of another method. It
shows the main scores after each step, and whether later steps preserve what an earlier step taught:

    survived(i) = reliability after step i / the highest reliability after any earlier step

The section on merged weights covers every method that was merged with the model before. It shows the learned and the
kept share at each share of the trained weights. The section on strengths shows the same at each strength of a steering
vector, and what was learned over what was kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from posttrain.reports import numbers
from posttrain.reports.charts import SHARES, TITLED, Chart, Layers, Rows, Said, span
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.marks import Mark, label_of, mark_icon, marks_of
from posttrain.reports.texts import Message, Words, say, say_known
from posttrain.reports.view import Entry, Line, Panel, Section, Table, fixed_column, heads_of, numeric

__all__ = ["chains_of", "chains_section", "merge_section", "strengths_section", "survived", "ways_of"]

Way = Mapping[str, tuple[tuple[float, float], ...]]
"""Score -> (a, value) at each share a of the trained weights, or at each strength a."""


class Kind(NamedTuple):
    """A kind of points between or beyond two models. name: of the points; words: the beginning of its messages' keys;
    whole: whether a runs from 0, the model before, to 1, the end of the method; otherwise a is a strength, and the
    method's settings may say which one its end has.
    """

    name: str
    words: str
    whole: bool

    def at(self, row: Row, settings: Mapping[str, Any]) -> float | None:
        """Return a checkpoint's a; None for other checkpoints. settings: those of its method."""
        match = re.fullmatch(rf"{self.name}-(-?\d+\.\d+)", row.checkpoint)
        end = 1.0 if self.whole else settings.get(self.name, 1.0)
        number = isinstance(end, int | float) and row.checkpoint == "final"
        return float(match[1]) if match else float(end) if number else None

    def has(self, row: Row) -> bool:
        """Whether a checkpoint is one of these points."""
        return row.checkpoint.startswith(f"{self.name}-")


BLEND = Kind("blend", "merge.", True)
STRENGTH = Kind("strength", "merge.strength_", False)


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


def ways_of(run: Run, kind: Kind = BLEND) -> dict[Version, Way]:
    """Return the scores of every model and method with points of a kind, and of the ends of the way that are known."""
    ways: dict[Version, Way] = {}
    for version in run.versions:
        rows = [row for row in run.rows_of(*version) if row.scores]
        if not any(map(kind.has, rows)):
            continue
        untouched = run.untouched(version[0])
        start = dict(untouched.scores) if untouched else {}
        if any(numbers.kept(row.scores) is not None for row in rows):
            start["kept"] = 1.0  # answers are compared with its own, so it keeps all of them
        settings = run.method_config(version[1])
        scores: dict[float, Mapping[str, float | None]] = {0.0: start}  # an end may be one of the other points, too
        scores |= {a: _main(row.scores, run) for row in rows if (a := kind.at(row, settings)) is not None}
        way = {
            name: tuple(sorted((a, value) for a, one in scores.items() if (value := one.get(name)) is not None))
            for name in ("learned", "kept", *(exam.key for exam in run.exams))
        }
        ways[version] = {name: found for name, found in way.items() if found}
    return ways


def merge_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return the section: a chart of all methods, then the numbers of each; None when no weights were merged."""
    return _section(run, marks, BLEND)


def strengths_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return the same for strengths of steering vectors, with a chart of what was learned over what was kept."""
    section = _section(run, marks, STRENGTH)
    if section is None:
        return None
    named = {label_of(version, run): (way, marks[version]) for version, way in ways_of(run, STRENGTH).items()}
    chart = learned_over_kept({name: both for name, both in named.items() if {"learned", "kept"} <= {*both[0]}})
    first, *rest = section.panels
    over = (Panel(notes=(say("merge.strength_over"),), chart=chart),) if chart else ()
    return section._replace(panels=(first, *over, *rest))


def _section(run: Run, marks: Mapping[Version, Mark], kind: Kind) -> Section | None:
    ways = ways_of(run, kind)
    if not ways:
        return None
    said = {name: say_known(f"merge.{name}", name) for way in ways.values() for name in way}
    drawn = [n for n in said if all(0 <= value <= 1 for way in ways.values() for _, value in way.get(n, ()))]
    keys: list[str | Version] = [*run.versions, *drawn]  # so no score has the mark of a method
    own = marks_of(keys)
    labels = {version: label_of(version, run) for version in ways}
    named = {labels[version]: way for version, way in ways.items()}
    chart = over_weights(named, said, {name: own[name] for name in drawn}, kind) if drawn else None
    left_out = [name for name in said if name not in drawn]
    about = [say(f"{kind.words}about"), *([say("merge.left_out", names=", ".join(left_out))] if left_out else [])]
    panels = (
        Panel(labels[v], mark_icon(marks[v]), table=_way_table(way, said, kind), kind="beside")
        for v, way in ways.items()
    )
    title = say(f"{kind.words}title")
    return Section("merge" if kind.whole else "strengths", title, (Panel(notes=tuple(about), chart=chart), *panels))


def over_weights(
    ways: Mapping[str, Way], names: Mapping[str, Message], marks: Mapping[str, Mark], kind: Kind = BLEND
) -> Chart:
    """Draw scores in per cent over the share of trained weights, 0 (before) to 1, or over the strength, with a panel
    for each method."""
    on = Layers("score", {Said(names[key]): mark for key, mark in marks.items()})
    rows: Rows = [
        {"kind": "point", "panel": label, "score": Said(names[key]), "a": a, "value": 100 * v, "text": f"{v:.4g}"}
        for label, way in ways.items() for key in marks for a, v in way.get(key, ())
    ]  # fmt: skip
    ticks: dict[str, Any] = {"values": [0, 0.25, 0.5, 0.75, 1], "scale": {"domain": [0, 1]}}
    if not kind.whole:
        ticks = {"scale": span((row["a"] for row in rows), 0.0)}
    x = on.number("a", f"{kind.words}axis", format=".2~f", **ticks)
    y = on.number("value", values=SHARES, scale={"domain": [0, 100]})
    on.add("point", "line", "line", x=x, y=y)
    tips = on.tips(panel="scores.method", score="exams.score", a=f"{kind.words}share", text="details.env_value")
    on.add("point", "point", "point", x=x, y=y, tooltip=tips)
    return replace(on.panels(rows, say(f"{kind.words}title")), names=tuple(marks))


def learned_over_kept(ways: Mapping[str, tuple[Way, Mark]]) -> Chart | None:
    """Draw the learned share (upwards) over the kept share, in per cent: a line per method, from strength to strength.
    None without methods."""
    rows: Rows = []
    for label, (way, _) in ways.items():
        learned, kept = dict(way["learned"]), dict(way["kept"])
        for a in sorted({*learned} & {*kept}):
            shown = {"learned": numbers.percent(learned[a]), "kept": numbers.percent(kept[a]), "a": f"{a:g}"}
            rows.append({"kind": "point", "name": label, "x": 100 * kept[a], "y": 100 * learned[a], "at": a, **shown})
    if not rows:
        return None
    on = Layers("name", {label: mark for label, (_, mark) in ways.items()})
    shares: dict[str, Any] = {"values": SHARES, "scale": {"domain": [0, 100]}}
    x, y = on.number("x", "merge.kept", **shares), on.number("y", "merge.learned", **shares)
    on.add("point", "line", "line", x=x, y=y, order={"field": "at", "type": "quantitative"})
    tips = on.tips(name="scores.method", a="merge.strength_share", learned="merge.learned", kept="merge.kept")
    on.add("point", "point", "point", x=x, y=y, tooltip=tips)
    return on.whole(rows, say("merge.strength_title"), 300, TITLED)


def _way_table(way: Way, names: Mapping[str, Message], kind: Kind) -> Table:
    shares = sorted({a for points in way.values() for a, _ in points})
    lines = tuple(
        Line((names[name],), tuple(fixed_column([dict(points).get(a) for a in shares]))) for name, points in way.items()
    )
    heads = heads_of(say(f"{kind.words}share"), (f"{a:g}" for a in shares))
    return Table(say("scores.scroll"), heads, lines, "plain transfer")
