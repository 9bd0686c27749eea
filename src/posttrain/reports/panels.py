"""From a run to its plots: the points of the scatter plot, the curves of the loss panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.statistics import share_over_changes
from posttrain.reports import numbers
from posttrain.reports.folder import Cell, Row, Run, Version
from posttrain.reports.plots import Curve, Spot, loss_panel, nice_ticks, scatter
from posttrain.reports.sizes import WHOLE, Size, columns_of, drawn, panel_sizes
from posttrain.reports.svg import Mark, mark_icon
from posttrain.reports.texts import say

__all__ = ["LOSS_KEYS", "Losses", "balance", "losses", "scatters"]

LOSS_KEYS: dict[str, tuple[str, ...]] = {"new": ("loss_new_nats", "new_loss_nats"), "all": ("loss_nats",)}
"""Curve -> its field in metrics.jsonl. A line with only `loss_nats` trained on new examples alone."""


class Panel(NamedTuple):
    """A loss panel with its method's name and mark."""

    label: str
    icon: Markup
    svg: Markup


class Losses(NamedTuple):
    """The loss section: panels, methods without a curve, whether several cells are averaged, whether some curve is of
    replayed rows, too; columns: of the panels on a wide page."""

    panels: tuple[Panel, ...]
    without: tuple[str, ...]
    many: bool = False
    replayed: bool = False
    columns: int = 1


def scatters(run: Run, marks: Mapping[Version, Mark]) -> tuple[Markup, ...]:
    """The learned-against-forgotten plot at every size; nothing when an axis has no scores."""
    spots = [spot for row in _methods(run) if (spot := _spot(row, run, marks)) is not None]
    if not spots:
        return ()
    return tuple(scatter(spots, size) for size in WHOLE)


class Balance(NamedTuple):
    """A row of the table beside the plot: its two coordinates in per cent, with intervals."""

    icon: Markup
    label: str
    learned: str
    learned_ci: str
    forgotten: str
    forgotten_ci: str


def balance(run: Run, marks: Mapping[Version, Mark]) -> list[Balance]:
    """The numbers of the scatter plot's large marks, in the order of the rows."""
    spots = [spot for row in _methods(run) if (spot := _spot(row, run, marks)) is not None]
    share = "locality"  # any share: it says that they are written in per cent
    return [
        Balance(mark_icon(s.mark), s.label, numbers.score_text(share, s.y), numbers.interval_text(share, s.y_ci),
                numbers.score_text(share, s.x), numbers.interval_text(share, s.x_ci))
        for s in spots
    ]  # fmt: skip


def _methods(run: Run) -> list[Row]:
    """The rows without the noise floor, which learns nothing and has no place among those that shall."""
    return [row for row in run.shown if not row.is_floor]


def row_label(row: Row, run: Run) -> str:
    """The method, with model and checkpoint where there are several."""
    label = row.method
    if len(run.models) > 1 and not run.alone:
        label += f" ({row.model.rsplit('/', 1)[-1]})"
    if len({r.checkpoint for r in run.shown}) > 1:
        label += f" {row.checkpoint}"
    return label


def _spot(row: Row, run: Run, marks: Mapping[Version, Mark]) -> Spot | None:
    x, y = numbers.forgotten(row.scores), numbers.learned(row.scores)
    if x is None or y is None:
        return None
    dots = [
        (lost, new, f"{row.method} · {cell.change}: ↑ {numbers.percent(new)}, → {numbers.percent(lost)}")
        for cell in row.cells
        if (lost := numbers.forgotten(cell.scores)) is not None and (new := numbers.learned(cell.scores)) is not None
    ]
    counted = [
        (numbers.probes(cell.n, "locality"), numbers.probes(cell.n, "reliability", "generality")) for cell in row.cells
    ]
    x_ci = share_over_changes([dot[0] for dot in dots] or [x], [n for n, _ in counted] or [1])
    y_ci = share_over_changes([dot[1] for dot in dots] or [y], [n for _, n in counted] or [1])
    return Spot(row_label(row, run), marks[row.version], x, y, x_ci, y_ci, tuple(dots) if len(dots) > 1 else ())


def losses(run: Run, marks: Mapping[Version, Mark]) -> Losses:
    """One panel per model and method that logged losses, all with the same axes."""
    found = []
    for model in run.models:
        for method in run.methods:
            cells = [c for c in run.cells if (c.model, c.method) == (model, method)]
            unique = {(c.change, c.seed): c for c in cells if c.metrics}  # checkpoints of a cell share their curve
            curves = {kind: _curves(list(unique.values()), kind) for kind in ("new", "all")}
            if curves["new"] or curves["all"]:
                label = f"{method} ({model})" if len(run.models) > 1 else method
                found.append((label, (model, method), curves))
    points = [p for _, _, curves in found for each in curves.values() for curve in each for p in curve.points]
    without = tuple(m for m in run.methods if m not in {NOISE_FLOOR, *(method for _, (_, method), _ in found)})
    if not points:
        return Losses((), without)
    steps, top = max(max(s for s, _ in points), 1.0), max(max(v for _, v in points), 1e-3)
    top = nice_ticks(top)[-1] if nice_ticks(top)[-1] >= 0.999 * top else nice_ticks(top)[-1] + nice_ticks(top)[1]
    sizes = panel_sizes(len(found))

    def panel(label: str, version: Version, curves: Mapping[str, Sequence[Curve]]) -> Panel:
        def draw(size: Size) -> Markup:
            said = say("loss.label", method=label)
            return loss_panel(curves, size, colour=marks[version].colour, steps=steps, top=top, label=said)

        return Panel(label, mark_icon(marks[version]), drawn(sizes, draw))

    panels = tuple(panel(*one) for one in found)
    many = any(len(c) > 1 for _, _, curves in found for c in curves.values())
    return Losses(panels, without, many, any(curves["all"] for _, _, curves in found), columns_of(len(panels)))


def _curves(cells: Sequence[Cell], kind: str) -> list[Curve]:
    """The curves of one kind. Where nothing is replayed the two kinds are one: it is drawn as that of the new rows."""
    curves = []
    for cell in cells:
        both = any(key in line for line in cell.metrics for key in LOSS_KEYS["new"])
        key_names = LOSS_KEYS[kind] if both else LOSS_KEYS["all"] if kind == "new" else ()
        points = [
            (float(line["step"]), float(line[key]))
            for line in cell.metrics
            for key in key_names
            if isinstance(line.get(key), int | float)
            and numbers.finite(line[key])
            and isinstance(line.get("step"), int)
        ]
        if points and not (both and kind == "all" and _same(cell)):
            curves.append(Curve(tuple(points)))
    return curves


def _same(cell: Cell) -> bool:
    """Whether the loss on all rows is the loss on the new ones at every step, as without replay."""
    pairs = [(line.get("loss_nats"), line.get(key)) for line in cell.metrics for key in LOSS_KEYS["new"] if key in line]
    return all(a is not None and b is not None and abs(a - b) < 1e-6 for a, b in pairs)
