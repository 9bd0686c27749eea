"""Average a study's lines per model, method and point over changes (the seeds of a change are averaged first)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

import numpy as np

from posttrain.exams.floor import NOISE_FLOOR, BesideFloor, Outcomes, beside_floor
from posttrain.exams.results import Line, Summary
from posttrain.exams.scores import over_changes
from posttrain.exams.statistics import Interval

__all__ = ["summarise"]


def summarise(lines: Sequence[Line]) -> tuple[Summary, ...]:
    """Return a row for each model, method and point, in the order of the lines, compared with the model's noise floor.
    Failed lines are left out.
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
        # with a single change, the interval is over its seeds
        alone = len(changes) == 1
        each = [_averaged(seeds, mean, intervals=alone or len(seeds) == 1) for seeds in changes.values()]
        averaged = _averaged(each, np.mean)
        own_row = {"model": model, "method": method, "checkpoint": checkpoint, "floor": beside}
        rows.append(averaged.model_copy(update=own_row))
    return tuple(rows)


def _averaged(
    rows: Sequence[Line | Summary], mean: Callable[[Sequence[float]], float], *, intervals: bool = True
) -> Summary:
    """Return each score's mean over the rows that have it, with its interval. The interval is over these rows, or the
    row's own if there is only one. `intervals`: False leaves it out."""
    scores: dict[str, float] = {}
    ci95: dict[str, Interval] = {}
    n: dict[str, int] = {}
    counts: dict[str, int] = {}
    for name in dict.fromkeys(name for one in rows for name in one.scores):
        having = [one for one in rows if name in one.scores]
        values = [one.scores[name] for one in having]
        scores[name], counts[name] = float(mean(values)), len(values)
        n[name] = sum(one.n.get(name, 0) for one in having)
        interval = over_changes(name, values, [one.n.get(name, 1) for one in having], having[0].ci95.get(name))
        if interval is not None and intervals:
            ci95[name] = interval
    return Summary(model="", method="", scores=scores, ci95=ci95, n=n, changes=counts)


def _every_seed(seeds: Sequence[Line]) -> dict[str, list[int | None]]:
    """Return the outcomes of a change's seeds, one seed after another."""
    keys = dict.fromkeys(key for one in seeds for key in one.outcomes)
    return {key: [kept for one in seeds for kept in one.outcomes.get(key, ())] for key in keys}


def _repeated(floors: Mapping[str, Outcomes], changes: Mapping[str, Sequence[Line]]) -> dict[str, Outcomes]:
    """Return the floor's outcomes repeated for each seed of a change, so that each seed is paired with them."""
    return {
        name: {key: [*kept] * sum(key in one.outcomes for one in changes[name]) for key, kept in outcomes.items()}
        for name, outcomes in floors.items()
    }
