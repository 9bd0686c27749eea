"""A run folder as the report sees it: results, samples, loss curves, configs. Only files are read, nothing is run.

A run may still be going or may have been killed: missing files and a torn last line are left out and counted in
`Run.problems`, which the report prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.config.json_text import parse_json
from posttrain.config.yaml_text import parse_yaml, plain
from posttrain.errors import ConfigError, DataError, MissingError, Problem
from posttrain.exams.floor import FEWEST, NOISE_FLOOR, BesideFloor
from posttrain.exams.scores import summarise
from posttrain.reports import numbers
from posttrain.reports.examined import (
    Before,
    Compared,
    Drift,
    ExamInfo,
    Reference,
    floats,
    intervals,
    pool,
    pool_drift,
    read_before,
    read_compare,
    read_drift,
    read_exams,
    read_reference,
)

__all__ = ["Cell", "Row", "Run", "Version", "read_lines", "read_run", "rows_of", "safe_name"]


Version = tuple[str, str]
"""A model and a method: what has a mark of its own in plots and tables."""

STAGES = "stages."
"""How the scores over stages begin."""


@dataclass(frozen=True)
class Cell:
    """One model x method x change x seed x checkpoint, with what its folder holds."""

    model: str
    method: str
    change: str
    seed: int
    checkpoint: str
    status: str
    error: str
    scores: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float]]
    n: Mapping[str, int]
    cost: Mapping[str, float]
    metrics: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()
    config: str = ""
    env: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    """The training step of the checkpoint; None where results.json does not say it."""
    folder: str = ""
    """Where its samples are, below the run folder."""
    compare: Mapping[str, Compared] = field(default_factory=dict)
    drift: Mapping[str, Drift] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stages: Mapping[str, Any] = field(default_factory=dict)
    """How tasks were learned one after another, as in results.json; empty without stages."""

    @property
    def version(self) -> Version:
        """Its model and method."""
        return self.model, self.method

    @property
    def done(self) -> bool:
        """Whether it has scores."""
        return self.status == "done"


@dataclass(frozen=True)
class Row:
    """One line of the main table: a model and a method, averaged over changes and seeds."""

    model: str
    method: str
    checkpoint: str
    scores: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float]]
    n: Mapping[str, int]
    cells: tuple[Cell, ...] = ()
    transfer: Mapping[str, float] = field(default_factory=dict)
    """Over stages: `acc`, `bwt`, `fwt`, `forgetting`; they are no scores of an exam."""
    transfer_ci95: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    floor: Mapping[str, BesideFloor] = field(default_factory=dict)
    """Locality score -> comparison with the noise floor; empty in the floor's own row and where there is none."""

    @property
    def version(self) -> Version:
        """Its model and method."""
        return self.model, self.method

    @property
    def is_floor(self) -> bool:
        """Whether this is the noise floor's own row."""
        return self.method == NOISE_FLOOR

    @property
    def changes(self) -> int:
        """How many changes it is averaged over."""
        return len({cell.change for cell in self.cells})

    def below(self, key: str) -> bool:
        """Whether a score is a loss: below the noise floor by a paired test."""
        return key in self.floor and self.floor[key].below

    def unsure(self, key: str) -> bool:
        """Whether a score fell over so few questions that no test could call it a loss."""
        return key in self.floor and self.floor[key].unsure

    @property
    def step(self) -> int | None:
        """The training step of its checkpoint: of its cells the largest."""
        return max((cell.step for cell in self.cells if cell.step is not None), default=None)

    def interval(self, key: str) -> tuple[float, float] | None:
        """An exam score's interval. Every cell answers the same questions, so that differences between cells say little
        about them: several cells have the mean of their own intervals' ends."""
        own = [cell.ci95[key] for cell in self.cells if key in cell.ci95]
        if not own:
            return self.ci95.get(key)
        return numbers.mean([low for low, _ in own]), numbers.mean([high for _, high in own])

    @cached_property
    def compare(self) -> dict[str, Compared]:
        """Exam -> comparison with the untouched model, the row's cells pooled."""
        names = dict.fromkeys(name for cell in self.cells for name in cell.compare)
        pooled = {name: pool([cell.compare[name] for cell in self.cells if name in cell.compare]) for name in names}
        return {name: one for name, one in pooled.items() if one is not None}

    @cached_property
    def drift(self) -> dict[str, Drift]:
        """Capability group -> relative change, mean over the row's cells."""
        return pool_drift([cell.drift for cell in self.cells])

    @cached_property
    def cost(self) -> dict[str, float]:
        """Mean of each cost over the row's finished cells; peaks are maxima."""
        values: dict[str, list[float]] = {}
        for cell in self.cells:
            for key, value in cell.cost.items():
                values.setdefault(key, []).append(value)
        return {k: max(v) if k.startswith("peak") else numbers.mean(v) for k, v in values.items()}


@dataclass(frozen=True)
class Run:
    """Everything the report is made of."""

    name: str
    study: Mapping[str, Any]
    study_text: str
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]
    problems: tuple[str, ...] = ()
    planned: int = 0
    """How many cells the study has; more than `cells` while it runs."""
    exams: tuple[ExamInfo, ...] = ()
    """The exams beyond the change exam."""
    before: tuple[Before, ...] = ()
    reference: tuple[Reference, ...] = ()
    place: Path | None = None
    """The run folder."""
    alone: bool = False
    """Of `posttrain exam`: one model, and the model before. Its rows are named by the model, they have no method."""
    before_name: str = ""
    """Of `posttrain exam`: the model before, empty where there is none."""

    @property
    def title(self) -> str:
        """The study's own title, else its name; of `posttrain exam`, the models, of a path its last parts."""
        if self.alone and self.models:
            names = [*([self.before_name] if self.before_name else []), *self.models]
            ends = dict(zip(names, map(_end, names), strict=True))
            if len(set(ends.values())) < len(ends):  # what tells them apart stands further in front
                ends = {name: name for name in names}
            before = [ends[self.before_name]] if self.before_name else []
            return " \u2192 ".join([*before, ", ".join(ends[name] for name in self.models)])
        return str(self.study.get("title") or self.name)

    @property
    def notes(self) -> str:
        """The study's own words about itself."""
        return str(self.study.get("notes") or "")

    @property
    def trained_once(self) -> tuple[Cell, ...]:
        """One entry per model x method x change x seed: the last checkpoint's, so that costs are counted once."""
        return tuple({(c.model, c.method, c.change, c.seed): c for c in self.cells}.values())

    @property
    def models(self) -> tuple[str, ...]:
        """Models in the order of the rows."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order of the rows."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def changes(self) -> tuple[str, ...]:
        """Changes in the order of the cells; a cell of other exams only has none, which is no change to count."""
        named = tuple(dict.fromkeys(cell.change for cell in self.cells if cell.change))
        return named or tuple(dict.fromkeys(cell.change for cell in self.cells))

    @property
    def stepped(self) -> bool:
        """Whether checkpoints were examined whose steps are known."""
        return any(len({r.step for r in self.rows_of(*key) if r.step is not None}) > 1 for key in self.versions)

    @property
    def versions(self) -> tuple[Version, ...]:
        """Every (model, method) in the order of the rows; the marks of the plots go by it."""
        return tuple(dict.fromkeys(row.version for row in self.rows))

    def rows_of(self, model: str, method: str) -> tuple[Row, ...]:
        """The rows of a model and a method, its checkpoints by step."""
        own = [row for row in self.rows if (row.model, row.method) == (model, method)]
        return tuple(sorted(own, key=lambda row: (row.checkpoint == "final", row.step or 0)))

    @cached_property
    def final(self) -> tuple[Row, ...]:
        """The last checkpoint of every model and method that has scores, else its last."""
        every = [self.rows_of(*version) for version in self.versions]
        return tuple(next((row for row in reversed(rows) if row.scores), rows[-1]) for rows in every)

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows of the change exam's tables: the final ones where a section of its own shows the others."""
        own = any(row.checkpoint.startswith(("stage-", "merge-")) for row in self.rows)
        return self.final if self.stepped or own else self.rows

    def untouched(self, model: str) -> Before | None:
        """The exams of a model before anything was done to it; of `posttrain exam`, which may name it otherwise, the
        one that --before named.
        """
        if self.alone and len(self.before) == 1:
            return self.before[0]
        return next((one for one in self.before if one.model == model), None)

    def method_config(self, name: str) -> Mapping[str, Any]:
        """A method's configuration, from the config.yaml of its cells; study.yaml's entry when there is none."""
        for cell in self.cells:
            whole = _yaml(cell.config, "config.yaml", []) if cell.method == name else {}
            if isinstance(whole.get("method"), Mapping):
                found: Mapping[str, Any] = whole["method"]
                return found
        for entry in self.study.get("methods") or ():
            if isinstance(entry, Mapping) and (entry.get("name") or entry.get("kind")) == name:
                return entry
        return {}


def read_run(folder: Path) -> Run:
    """Read a run folder. MissingError without results.json, DataError when it is not what `posttrain run` writes."""
    problems: list[str] = []
    results = read_results(folder)
    alone = results.get("study") == "exam"  # of `posttrain exam`, which has no study
    study_text = _text(folder / "study.yaml", None if alone else problems)
    study = _yaml(study_text, "study.yaml", problems)
    cells = tuple(_cell(entry, folder, problems) for entry in results["cells"])
    planned = int(results.get("planned", 0))
    rows, before = rows_of(results, cells), read_before(results)
    before_name = ""
    if alone:
        rows = tuple(
            row if row.is_floor else replace(row, method=row.model, cells=_named_by_model(row.cells)) for row in rows
        )
        cells = _named_by_model(cells)
        told = results.get("before")  # of the change exam, whose answers before have no scores, the name only
        before_name = told if isinstance(told, str) else before[0].model if before else ""
    return Run(
        str(results.get("study", folder.name)),
        study,
        study_text,
        cells,
        rows,
        tuple(problems),
        planned,
        read_exams(results),
        before,
        read_reference(results),
        folder,
        alone,
        before_name,
    )


def _end(name: str) -> str:
    """A model's name; of a long path the last three parts, as of a model that a study kept."""
    parts = name.rstrip("/").split("/")
    return name if len(parts) <= 3 else "\u2026/" + "/".join(parts[-3:])


def _named_by_model(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    return tuple(cell if cell.method == NOISE_FLOOR else replace(cell, method=cell.model) for cell in cells)


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run folder, as a mapping with a list of `cells`."""
    path = folder / "results.json"
    if not path.is_file():
        what = "no such folder" if not folder.is_dir() else "no results.json in this folder"
        raise MissingError(Problem(str(folder), what, "give the folder that `posttrain run STUDY.yaml` wrote"))
    try:
        results = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            Problem(str(path), f"not valid JSON: {error}", "run the study again; finished cells are kept")
        ) from error
    if not isinstance(results, dict) or not isinstance(results.get("cells"), list):
        raise DataError(Problem(str(path), "a mapping with a list of 'cells' is expected"))
    wanted = ("model", "method", "change")
    bad = [
        Problem(f"{path}: cells[{i}]", f"{', '.join(wanted)} are expected")
        for i, entry in enumerate(results["cells"])
        if not isinstance(entry, dict) or not all(key in entry for key in wanted)
    ]
    if bad:
        raise DataError(*bad)
    return results


def rows_of(results: Mapping[str, Any], cells: tuple[Cell, ...] | None = None) -> tuple[Row, ...]:
    """The main table's rows: results.json's own summary; means over finished cells for rows that it lacks."""
    if cells is None:
        cells = tuple(_bare_cell(entry) for entry in results["cells"])
    grouped: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.model, cell.method, cell.checkpoint), []).append(cell)
    summary = {(s["model"], s["method"], str(s.get("checkpoint", "final"))): s for s in results.get("summary") or ()}
    rows = []
    for (model, method, checkpoint), members in grouped.items():
        done = tuple(cell for cell in members if cell.done)
        given = summary.get((model, method, checkpoint))
        if given is None and len(done) == 1 and done[0].ci95:
            rows.append(Row(model, method, checkpoint, done[0].scores, done[0].ci95, done[0].n, done))
        elif given is None:
            made = summarise([cell.scores for cell in done], n=[cell.n for cell in done])
            rows.append(Row(model, method, checkpoint, made.scores, made.ci95, made.n, done))
        else:
            ci95, beside = intervals(given.get("ci95")), floors(given.get("floor"))
            counts = given.get("n") or {}
            rows.append(Row(model, method, checkpoint, floats(given.get("scores")), ci95, counts, done, floor=beside))
    return tuple(_apart(row) for row in rows)


def floors(node: Any) -> dict[str, BesideFloor]:
    """Comparisons with the noise floor as results.json has them."""
    wanted = set(BesideFloor._fields)
    given = node if isinstance(node, dict) else {}
    found = {}
    for key, one in given.items():
        if isinstance(one, dict) and {*one, "testable"} == wanted:
            told = {"testable": round(one["n"] * one["floor"]) >= FEWEST, **one}  # files of 0.1 do not say it
            found[key] = BesideFloor(**told)
    return found


def _apart(row: Row) -> Row:
    """What was reckoned over stages stands by itself: it belongs to no exam."""
    own = {key: value for key, value in row.scores.items() if key.startswith(STAGES)}
    if not own:
        return row
    return replace(
        row,
        scores={key: value for key, value in row.scores.items() if key not in own},
        transfer={key.removeprefix(STAGES): value for key, value in own.items()},
        transfer_ci95={k.removeprefix(STAGES): pair for k, pair in row.ci95.items() if k in own},
    )


def _bare_cell(entry: Mapping[str, Any], **files: Any) -> Cell:
    return Cell(
        model=str(entry["model"]),
        method=str(entry["method"]),
        change=str(entry["change"]),
        seed=int(entry.get("seed", 0)),
        checkpoint=str(entry.get("checkpoint", "final")),
        status=str(entry.get("status", "done")),
        error=str(entry.get("error") or ""),
        scores=floats(entry.get("scores")),
        ci95=intervals(entry.get("ci95")),
        n=entry.get("n") or {},
        cost=floats(entry.get("cost")),
        step=int(entry["step"]) if isinstance(entry.get("step"), int | float) else None,
        folder=str(entry.get("folder") or ""),
        compare=read_compare(entry.get("compare")),
        drift=read_drift(entry.get("drift")),
        notes=tuple(map(str, entry.get("notes") or ())),
        stages=entry["stages"] if isinstance(entry.get("stages"), dict) else {},
        **files,
    )


def _cell(entry: Mapping[str, Any], folder: Path, problems: list[str]) -> Cell:
    """A cell of results.json with the files of its folder."""
    place = folder / str(entry["folder"]) if entry.get("folder") else folder / "cells" / cell_folder(entry)
    if not place.is_dir():
        if entry.get("status", "done") == "done":
            problems.append(f"{place.relative_to(folder)}: no such folder")
        return _bare_cell(entry)
    entry = {**entry, "folder": str(place.relative_to(folder))}
    home = place.parents[1] if place.parent.name == "checkpoints" else place  # a checkpoint's folder has samples only
    try:
        env: Any = parse_json(_text(home / "env.json", None) or "{}")
    except ValueError:
        problems.append(f"{(home / 'env.json').relative_to(folder)}: not valid JSON, left out")
        env = {}
    return _bare_cell(
        entry,
        metrics=tuple(_jsonl(home / "metrics.jsonl", folder, problems)),
        samples=tuple(
            row
            for row in _jsonl(place / "samples.jsonl", folder, problems)
            if row.get("change", entry["change"]) == entry["change"]  # `posttrain exam` has all changes in one file
        ),
        config=_text(home / "config.yaml", None),
        env=env if isinstance(env, dict) else {},
    )


def cell_folder(entry: Mapping[str, Any]) -> str:
    """The folder name of a cell that does not say its own: <model>--<method>--<change>--s<seed>, made safe."""
    parts = (entry["model"], entry["method"], entry["change"], f"s{entry.get('seed', 0)}")
    return "--".join(safe_name(str(part)) for part in parts)


def safe_name(name: str) -> str:
    """A name as a part of a path, as `posttrain run` writes it."""
    return re.sub(r"-+", "-", re.sub(r"[^\w.+-]", "-", name)).strip("-.") or "x"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file; none where it is missing, and a line that cannot be read is left out."""
    yield from _jsonl(path, path.parent, [])


def _jsonl(path: Path, folder: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file that is appended to; a line that cannot be read is counted, not fatal."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            problems.append(f"{path.relative_to(folder)}:{number}: not valid JSON, left out")
            continue
        if isinstance(row, dict):
            yield row


def _text(path: Path, problems: list[str] | None) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8-sig")
    if problems is not None:
        problems.append(f"{path.name}: no such file")
    return ""


def _yaml(text: str, name: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        node = plain(parse_yaml(text, name)) if text else {}
    except ConfigError as error:
        problems += map(str, error.problems)
        return {}
    return node if isinstance(node, dict) else {}
