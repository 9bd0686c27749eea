"""The sections of the change exam: learned against forgotten, scores, loss curves, more scores and cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.statistics import share_over_changes
from posttrain.reports import numbers
from posttrain.reports.charts import SHARES, TITLED, Chart, Layers, Rows, Said, number, span
from posttrain.reports.folder import Cell, Run, Version
from posttrain.reports.marks import Mark, label_of, mark_icon, row_label
from posttrain.reports.score_tables import CONTENT_GROUPS, EXAM_GROUPS, MORE_GROUPS, cost_table, score_table
from posttrain.reports.shared import changes_notes, over
from posttrain.reports.texts import Message, say, say_if
from posttrain.reports.view import Line, Panel, Section, Table, heads_of, numeric

__all__ = ["LOSS_KEYS", "balance", "loss_section", "more_section", "plot_section", "scores_section"]

LOSS_KEYS: dict[str, tuple[str, ...]] = {"new": ("loss_new_nats", "new_loss_nats"), "all": ("loss_nats",)}
"""Curve -> the names that its field may have in metrics.jsonl. A line with only `loss_nats` is a step that trained on
new examples alone."""


TIPS = 40
"""About how many points of a mean loss curve get a tooltip."""
Curve = tuple[tuple[float, float], ...]
"""The loss curve of a cell: (step, nats per token)."""


class Spot(NamedTuple):
    """A method in the scatter plot. x is the forgotten share and y the learned share. x, y: means; x_ci, y_ci: their
    intervals; dots: (x, y, change) of each change. All shares are 0 to 1.
    """

    label: str
    mark: Mark
    x: float
    y: float
    x_ci: tuple[float, float]
    y_ci: tuple[float, float]
    dots: tuple[tuple[float, float, str], ...]


def plot_section(run: Run, marks: Mapping[Version, Mark]) -> Section:
    """Return the plot of learned against forgotten, and a table with the numbers of its large marks."""
    title = say("plot.title")
    spots = list(_spots(run, marks))
    if not spots:
        return Section("plot", title, (Panel(below=(say("plot.none"),)),))
    about = say_if({"plot.about": True, "plot.small": len(run.changes) > 1, "plot.axes": True})
    chart = Panel(chart=scatter(spots), below=about)
    return Section("plot", title, (chart, Panel(say("plot.table"), table=balance(spots), folded=True)))


def balance(spots: Sequence[Spot]) -> Table:
    """Return a table of the learned and forgotten shares of each method, in per cent with intervals."""
    lines = []
    for spot in spots:
        shares = ((spot.y, spot.y_ci), (spot.x, spot.x_ci))
        entries = (numeric(value, numbers.share_text, numbers.between(interval)) for value, interval in shares)
        lines.append(Line((spot.label,), tuple(entries), mark_icon(spot.mark)))
    heads = heads_of(say("scores.method"), (say("details.learned"), say("details.forgotten")))
    return Table(say("plot.table"), heads, tuple(lines))


def _spots(run: Run, marks: Mapping[Version, Mark]) -> Iterator[Spot]:
    """Yield a point for each method that has both shares; the noise floor is not a method, so it has none."""
    for row in run.shown:
        x, y = numbers.forgotten(row.scores), numbers.learned(row.scores)
        if row.is_floor or x is None or y is None:
            continue
        dots = tuple(
            (lost, new, cell.change) for cell in row.cells
            if (lost := numbers.forgotten(cell.scores)) is not None
            and (new := numbers.learned(cell.scores)) is not None
        )  # fmt: skip
        told = [numbers.probes(cell.n, "reliability", "generality") for cell in row.cells]
        other = [numbers.probes(cell.n, "locality") for cell in row.cells]
        x_ci = share_over_changes([dot[0] for dot in dots] or [x], other or [1])
        y_ci = share_over_changes([dot[1] for dot in dots] or [y], told or [1])
        yield Spot(row_label(row, run), marks[row.version], x, y, x_ci, y_ci, dots if len(dots) > 1 else ())


def scatter(spots: Sequence[Spot]) -> Chart:
    """Draw learned (upwards) against forgotten (to the right); the top left corner is best."""
    marks = {spot.label: spot.mark for spot in spots}
    on = Layers("name", marks)
    x, y = (on.number("x", "plot.forgotten", **PER_CENT), on.number("y", "plot.learned", **PER_CENT))
    both = {"learned": "plot.learned", "forgotten": "plot.forgotten"}
    tips = on.tips(name="scores.method", change="details.change", **both)
    on.add("dot", "point", "dot", full=0.42, x=x, y=y, tooltip=tips)
    on.add("mean", "rule", "interval", x=number("low"), x2={"field": "high"}, y=y)
    on.add("mean", "rule", "interval", x=x, y=number("bottom"), y2={"field": "top"})
    on.add("mean", "point", "mean", x=x, y=y, tooltip=on.tips(name="scores.method", **both))
    on.plain("label", "text", "label", "labels", x=x, y=y, text={"field": "name"})
    on.plain("corner", "text", "quiet", x=x, y=y, text={"field": "name"})
    corner = {"kind": "corner", "name": Said(say("plot.ideal")), "x": 3, "y": 97}
    rows = [*(row for spot in spots for row in _rows(spot)), corner]
    return on.whole(rows, say("plot.title"), 430, TITLED)


PER_CENT: dict[str, Any] = {"values": SHARES, "scale": {"domain": [0, 100]}}


def _rows(spot: Spot) -> Iterator[dict[str, Any]]:
    for x, y, change in spot.dots:
        shown = {"learned": numbers.percent(y), "forgotten": numbers.percent(x), "change": change}
        yield {"kind": "dot", "name": spot.label, "x": 100 * x, "y": 100 * y, **shown}
    learned = f"{numbers.percent(spot.y)} [{numbers.between(spot.y_ci)}]"
    lost = f"{numbers.percent(spot.x)} [{numbers.between(spot.x_ci)}]"
    low, high, bottom, top = (100 * end for end in (*spot.x_ci, *spot.y_ci))
    yield {"kind": "mean", "name": spot.label, "x": 100 * spot.x, "y": 100 * spot.y, "learned": learned,
           "forgotten": lost, "low": low, "high": high, "bottom": bottom, "top": top}  # fmt: skip


def scores_section(run: Run, marks: Mapping[Version, Mark]) -> Section:
    """Return the main table, and explanations of its words."""
    title = say("scores.title")
    table = score_table(run, EXAM_GROUPS, marks, title)
    if table is None:
        return Section("scores", title, (Panel(below=(say("scores.none"),)),))
    asked = (name for name in ("reliability", "generality", "locality") if name in run.groups)
    words = Panel(items=tuple((say(f"intro.{name}"),) for name in asked), kind="words")
    return Section("scores", title, (Panel(table=table, below=tuple(_notes(run))), words))


def _notes(run: Run) -> Iterator[Message]:
    """Yield the remarks below the table of scores."""
    groups = run.groups
    rows = [row for row in run.shown if row.scores]
    yield say("scores.about", changes=over(rows)) if len(run.changes) > 1 else say("scores.about_one")
    yield from changes_notes(
        rows, lambda row: say("answers.noise_floor") if row.is_floor else f"`{row_label(row, run)}`"
    )
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


def more_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return the tables of graded contents, of the strict comparison, of all other scores, and of costs. None when all
    of them are empty.
    """
    content = (say("scores.content_about"), *_about(run, *CONTENT_GROUPS))
    more = say("scores.more" if run.groups >= {*MORE_GROUPS} else "head.other")
    panels = []
    for groups, title, notes in (
        (CONTENT_GROUPS, say("scores.content"), content),
        (("strict",), say("scores.strict"), (say("scores.strict_about"),)),
        (MORE_GROUPS, more, _about(run, "drift", "likelihood")),
    ):
        table = score_table(run, groups, marks, title)
        if table is not None:
            panels.append(Panel(title, table=table, below=notes, folded=groups != MORE_GROUPS))
    name = "more.title" if panels else "head.cost"
    costs = cost_table(run, marks)
    if costs is not None:
        panels.append(Panel(say("head.cost") if panels else "", table=costs))
    return Section("more-scores", say(name), tuple(panels), name.replace("more.title", "nav.more")) if panels else None


def _about(run: Run, *groups: str) -> tuple[Message, ...]:
    """Return the explanation of each of these groups that the run has."""
    return say_if({f"scores.{name}_about": name in run.groups for name in groups})


def loss_section(run: Run, marks: Mapping[Version, Mark]) -> Section | None:
    """Return a chart with a panel for each model and method with logged losses; None when there are none."""
    curves: dict[str, dict[str, list[Curve]]] = {}
    named: dict[str, Mark] = {}
    for version in run.versions:
        cells = {(c.change, c.seed): c for c in run.cells if c.version == version and c.metrics}
        kinds = {kind: _curves(list(cells.values()), kind) for kind in ("new", "all")}
        if kinds["new"] or kinds["all"]:
            label = label_of(version, run)
            curves[label], named[label] = kinds, marks[version]
    if not curves:
        return None
    trained = {cell.method for cell in run.cells if cell.metrics}
    without = [name for name in run.methods if name not in (*trained, NOISE_FLOOR)]
    replayed = any(kinds["all"] for kinds in curves.values())
    many = any(len(each) > 1 for kinds in curves.values() for each in kinds.values())
    about = {"loss.about": True, "loss.axes": len(curves) > 1, "loss.replay": replayed, "loss.many": many}
    keys = (("solid", say("loss.new")), ("dashed", say("loss.all"))) if replayed else ()
    below = (say("loss.none", methods=", ".join(without)),) if without else ()
    chart = losses(curves, named)
    return Section("loss", say("loss.title"), (Panel(notes=say_if(about), keys=keys, chart=chart, below=below),))


def losses(curves: Mapping[str, Mapping[str, Sequence[Curve]]], marks: Mapping[str, Mark]) -> Chart:
    """Draw the loss curves of each method: a thin line for each cell, and a thick line for their mean. curves: method
    -> `new` (loss on the new examples; solid) and `all` (loss on everything in the step; dashed).
    """
    rows: Rows = [
        {"kind": kind, "panel": label, "cell": cell, "step": step, "loss": value}
        for label, kinds in curves.items() for name, own in kinds.items()
        for kind, cell, points in _drawn(name, own) for step, value in points
    ]  # fmt: skip
    on = Layers("panel", marks, legend=False)
    x = on.number("step", "plot.step", grid=False, scale=span((row["step"] for row in rows), 0))
    y = on.number("loss", scale=span((row["loss"] for row in rows), 0))
    tips = on.tips(panel="scores.method", step="plot.step", loss="loss.unit")
    for kind, thin, thick in (("all", "thin dashed", "dashed"), ("new", "thin", "line")):
        on.add(f"{kind} cell", "line", thin, full=0.3, x=x, y=y, detail={"field": "cell"})
        on.add(kind, "line", thick, x=x, y=y)
        # invisible; it carries the tooltips
        on.add(f"{kind} tip", "point", "point", kind, full=0.0, x=x, y=y, tooltip=tips)
    return on.panels(rows, say("loss.title"))


def _drawn(name: str, curves: Sequence[Curve]) -> Iterator[tuple[str, int, Sequence[tuple[float, float]]]]:
    """Yield (kind, cell, points) of each cell's curve if there are several, of their mean, and of its tooltips."""
    for cell, curve in enumerate(curves if len(curves) > 1 else ()):
        yield f"{name} cell", cell, curve
    mean = mean_curve(curves)
    yield name, -1, mean
    yield f"{name} tip", -1, mean[:: 1 + len(mean) // TIPS]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Return the mean over cells at every logged step, from the step at which every cell has a loss. A cell that has
    stopped counts with its last loss.
    """
    if not curves:
        return []
    steps = sorted({step for curve in curves for step, _ in curve})
    first = max(curve[0][0] for curve in curves)
    return [(s, numbers.mean([[v for at, v in c if at <= s][-1] for c in curves])) for s in steps if s >= first]


def _curves(cells: Sequence[Cell], kind: str) -> list[Curve]:
    """Return the curves of one kind, `new` or `all`, for the cells that have one. Without replay both kinds are equal.
    Then only the curves of `new` are returned."""
    curves = []
    for cell in cells:
        pairs = [(line.get("loss_nats"), line[key]) for line in cell.metrics for key in LOSS_KEYS["new"] if key in line]
        # true also without any pair
        same = all(a is not None and b is not None and abs(a - b) < 1e-6 for a, b in pairs)
        keys = LOSS_KEYS[kind] if pairs else LOSS_KEYS["all"] if kind == "new" else ()
        points = [
            (float(line["step"]), float(line[key]))
            for line in cell.metrics
            for key in keys
            if isinstance(line.get(key), int | float) and math.isfinite(line[key]) and isinstance(line.get("step"), int)
        ]
        if points and not (kind == "all" and same):
            curves.append(tuple(points))
    return curves
