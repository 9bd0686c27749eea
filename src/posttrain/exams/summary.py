"""A study's lines averaged: per model, method and point, over changes (a change's seeds are averaged first)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np

from posttrain.exams.floor import NOISE_FLOOR, BesideFloor, Outcomes, beside_floor
from posttrain.exams.results import Line, Summary
from posttrain.exams.scores import over_changes
from posttrain.exams.statistics import Interval

__all__ = ["summarise"]


def summarise(lines: Sequence[Line]) -> tuple[Summary, ...]:
    """Rows in the order of the lines, those that failed aside, with intervals over changes and the comparison with the
    noise floor of the same model, where it was examined.
    """
    floors = {(line.model, line.change): line.outcomes for line in lines if line.method == NOISE_FLOOR and line.done}
    groups: dict[tuple[str, str, str], dict[str, list[Line]]] = {}
    for line in lines:
        if line.done:
            key = (line.model, line.method, line.checkpoint)
            groups.setdefault(key, {}).setdefault(line.change, []).append(line)
    rows = []
    for (model, method, checkpoint), changes in groups.items():
        beside: dict[str, BesideFloor] = {}
        if method != NOISE_FLOOR:
            own = {name: floors[model, name] for name in changes if (model, name) in floors}
            beside = beside_floor({name: _every_seed(changes[name]) for name in own}, _repeated(own, changes))
        averaged = _average([_of_change(seeds, only=len(changes) == 1) for seeds in changes.values()])
        own_row = {"model": model, "method": method, "checkpoint": checkpoint, "floor": beside}
        rows.append(averaged.model_copy(update=own_row))
    return tuple(rows)


def _average(changes: Sequence[Summary]) -> Summary:
    """Each score averaged over changes, with an interval over changes; one change keeps its own interval."""
    scores: dict[str, float] = {}
    ci95: dict[str, Interval] = {}
    n: dict[str, int] = {}
    counts: dict[str, int] = {}
    for name in dict.fromkeys(name for one in changes for name in one.scores):
        having = [one for one in changes if name in one.scores]
        values = [one.scores[name] for one in having]
        scores[name] = float(np.mean(values))
        counts[name] = len(values)
        n[name] = sum(one.n.get(name, 0) for one in having)
        interval = over_changes(name, values, [one.n.get(name, 1) for one in having], having[0].ci95.get(name))
        if interval is not None:
            ci95[name] = interval
    return Summary(model="", method="", scores=scores, ci95=ci95, n=n, changes=counts)


def _of_change(seeds: Sequence[Line], *, only: bool) -> Summary:
    """One change's seeds as one: scores are averaged. One seed keeps its own intervals; several have those of the
    bootstrap over them where no other change is there to be resampled.
    """
    names = list(dict.fromkeys(name for one in seeds for name in one.scores))
    scores = {name: mean(one.scores[name] for one in seeds if name in one.scores) for name in names}
    if len(seeds) == 1:
        ci95 = dict(seeds[0].ci95)
    else:
        having = {name: [s for s in seeds if name in s.scores] for name in names}
        drawn = {
            name: over_changes(
                name, [s.scores[name] for s in own], [s.n.get(name, 1) for s in own], own[0].ci95.get(name)
            )
            for name, own in having.items()
        }
        ci95 = {name: interval for name, interval in drawn.items() if interval is not None and only}
    n = {name: sum(one.n.get(name, 0) for one in seeds) for name in names}
    return Summary(model="", method="", scores=scores, ci95=ci95, n=n)


def _every_seed(seeds: Sequence[Line]) -> dict[str, list[int | None]]:
    """The outcomes of a change's seeds, one after another."""
    keys = dict.fromkeys(key for one in seeds for key in one.outcomes)
    return {key: [kept for one in seeds for kept in one.outcomes.get(key, ())] for key in keys}


def _repeated(floors: Mapping[str, Outcomes], changes: Mapping[str, Sequence[Line]]) -> dict[str, Outcomes]:
    """The floor's outcomes as often as a change has seeds, so that each of them is paired with it."""
    return {
        name: {key: [*kept] * sum(key in one.outcomes for one in changes[name]) for key, kept in outcomes.items()}
        for name, outcomes in floors.items()
    }
