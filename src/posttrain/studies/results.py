"""results.json and the files of a cell, each written whole or not at all.

A cell's own `result.json` says that it is done and for which content hash; results.json is put together from these.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from ruamel.yaml import YAML

from posttrain.exams.floor import NOISE_FLOOR, Outcomes, beside_floor
from posttrain.exams.scores import ExamResult, over_changes, summarise
from posttrain.exams.statistics import Interval
from posttrain.models.disk import write_whole

__all__ = [
    "CellResult",
    "Examined",
    "read_examined",
    "read_result",
    "summarise_cells",
    "to_yaml",
    "write_examined",
    "write_json",
    "write_text",
]


@dataclass(frozen=True)
class Examined:
    """The scores of one checkpoint of a cell; ci95 and n by score; folder: where its samples are.

    step: optimiser steps so far, None where nothing is trained; compare: exam -> `Comparison` with the untouched model;
    drift: capability -> relative change; cost: `exam_s` and by exam, tokens by exam; outcomes: locality score -> of
    each probe in the file's order: 1 kept, 0 not, None not counted.
    """

    checkpoint: str
    scores: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float]]
    n: Mapping[str, int]
    folder: str
    step: int | None = None
    compare: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    drift: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=dict)


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell once it was run. stages: names, scores before, matrix and transfer of tasks learned one
    after another (`exams/transfer.py`), empty without stages.
    """

    hash: str
    model: str
    method: str
    change: str
    seed: int
    status: str
    error: str = ""
    exit_code: int = 0
    examined: Sequence[Examined] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    weights: str = ""
    stages: Mapping[str, Any] = field(default_factory=dict)

    def entries(self) -> list[dict[str, Any]]:
        """The lines of results.json: one per checkpoint, or one that says what failed."""
        head = {"model": self.model, "method": self.method, "change": self.change, "seed": self.seed}
        tail = {"status": self.status, "hash": self.hash}
        if self.status != "done":
            empty: dict[str, Any] = {"scores": {}, "ci95": {}, "n": {}}
            return [{**head, "checkpoint": "final", **tail, "cost": dict(self.cost), "error": self.error, **empty}]
        weights = {"weights": self.weights} if self.weights else {}
        lines = [{**head, **asdict(one), **tail, "cost": {**self.cost, **one.cost}, **weights} for one in self.examined]
        for line in lines:
            if line["checkpoint"] == "final" and self.stages:
                line["stages"] = dict(self.stages)
        return lines


def finite(value: Any) -> Any:
    """NaN and infinities as None, which JSON can say."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_whole(path, text)


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(finite(data), ensure_ascii=False, indent=1) + "\n")


def to_yaml(data: Mapping[str, Any]) -> str:
    """A mapping as YAML, keys in their order."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    stream = io.StringIO()
    yaml.dump(dict(data), stream)
    return stream.getvalue()


def read_result(folder: Path) -> CellResult | None:
    """What `result.json` of a cell says; None when there is none that can be read."""
    try:
        data = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        examined = [Examined(**one) for one in data.pop("examined")]
        return CellResult(**data, examined=examined)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def read_examined(path: Path, key: str) -> Examined | None:
    """A checkpoint that was examined under this content hash; None otherwise."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Examined(**data["examined"]) if data["hash"] == key else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def write_examined(path: Path, key: str, one: Examined) -> None:
    """Keep what a checkpoint's exams have found."""
    write_json(path, {"hash": key, "examined": asdict(one)})


def _of_change(seeds: Sequence[Examined], *, only: bool) -> ExamResult:
    """One change's seeds as one result: scores are averaged. One seed keeps its own intervals; several have those of
    the bootstrap over them where no other change is there to be resampled.
    """
    names = list(dict.fromkeys(name for one in seeds for name in one.scores))
    scores = {name: mean(one.scores[name] for one in seeds if name in one.scores) for name in names}
    if len(seeds) == 1:
        ci95 = {name: Interval(*pair) for name, pair in seeds[0].ci95.items()}
    else:
        having = {name: [s for s in seeds if name in s.scores] for name in names}
        drawn = {
            name: over_changes(
                name,
                [s.scores[name] for s in own],
                [s.n.get(name, 1) for s in own],
                Interval(*own[0].ci95[name]) if name in own[0].ci95 else None,
            )
            for name, own in having.items()
        }
        ci95 = {name: interval for name, interval in drawn.items() if interval is not None and only}
    return ExamResult(scores, ci95, {name: sum(one.n.get(name, 0) for one in seeds) for name in names})


def summarise_cells(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Per model x method x checkpoint: means over changes (a change's seeds are averaged first), with intervals.

    n: probes or samples, all cells together; changes: how many changes have the score; floor: locality score -> the
    comparison with the noise floor (`exams/floor.py`), empty in its own row and where there is none.
    """
    floors = {
        (result.model, result.change): one.outcomes
        for result in results
        if result.method == NOISE_FLOOR and result.status == "done"
        for one in result.examined
    }
    groups: dict[tuple[str, str, str], dict[str, list[Examined]]] = {}
    for result in results:
        for one in result.examined if result.status == "done" else ():
            key = (result.model, result.method, one.checkpoint)
            groups.setdefault(key, {}).setdefault(result.change, []).append(one)
    lines = []
    for (model, method, checkpoint), changes in groups.items():
        summary = summarise([_of_change(seeds, only=len(changes) == 1) for seeds in changes.values()])
        beside: dict[str, Any] = {}
        if method != NOISE_FLOOR:
            own = {name: floors[model, name] for name in changes if (model, name) in floors}
            beside = beside_floor({name: _every_seed(changes[name]) for name in own}, _repeated(own, changes))
        line = {"model": model, "method": method, "checkpoint": checkpoint, **asdict(summary)}
        lines.append({**line, "floor": {key: one._asdict() for key, one in beside.items()}})
    return lines


def _every_seed(seeds: Sequence[Examined]) -> dict[str, list[int | None]]:
    """The outcomes of a change's seeds, one after another."""
    keys = dict.fromkeys(key for one in seeds for key in one.outcomes)
    return {key: [kept for one in seeds for kept in one.outcomes.get(key, ())] for key in keys}


def _repeated(floors: Mapping[str, Outcomes], changes: Mapping[str, Sequence[Examined]]) -> dict[str, Outcomes]:
    """The floor's outcomes as often as a change has seeds, so that each of them is paired with it."""
    return {
        name: {key: [*kept] * sum(key in one.outcomes for one in changes[name]) for key, kept in outcomes.items()}
        for name, outcomes in floors.items()
    }
