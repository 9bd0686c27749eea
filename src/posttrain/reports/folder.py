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
from posttrain.errors import ConfigError
from posttrain.exams.capabilities import Drift
from posttrain.exams.floor import NOISE_FLOOR, BesideFloor
from posttrain.exams.results import CHANGE, ExamInfo, Line, MethodInfo, Reference, Results, Untouched, read_results
from posttrain.exams.summary import summarise
from posttrain.reports import numbers
from posttrain.reports.examined import Compared, compared, pool, pool_drift

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
    """The exams beyond the change exam whose scores are the result."""
    before: tuple[Untouched, ...] = ()
    reference: tuple[Reference, ...] = ()
    place: Path | None = None
    """The run folder."""
    alone: bool = False
    """Of `posttrain exam`: one model, and the model before. Its rows are named by the model, they have no method."""
    before_name: str = ""
    """Of `posttrain exam`: the model before, empty where there is none."""
    methods_info: Mapping[str, MethodInfo] = field(default_factory=dict)
    """What each method says of itself."""
    selecting: tuple[ExamInfo, ...] = ()
    """The exams that have chosen settings: they stand in no table, and the page names them."""

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
        own = any(row.checkpoint.startswith(("stage-", "blend-", "after-")) for row in self.rows)
        return self.final if self.stepped or own else self.rows

    def untouched(self, model: str) -> Untouched | None:
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
    alone = results.study == "exam"  # of `posttrain exam`, which has no study
    study_text = _text(folder / "study.yaml", None if alone else problems)
    study = _yaml(study_text, "study.yaml", problems)
    cells = tuple(_cell(line, folder, problems) for line in results.cells)
    rows, before_name = rows_of(results, cells), ""
    if alone:
        rows = tuple(
            row if row.is_floor else replace(row, method=row.model, cells=_named_by_model(row.cells)) for row in rows
        )
        cells = _named_by_model(cells)
        before_name = results.before[0].model if results.before else ""
    return Run(
        results.study,
        study,
        study_text,
        cells,
        rows,
        tuple(problems),
        results.planned,
        tuple(exam for exam in results.exams.values() if exam.kind != CHANGE and exam.role == "report"),
        tuple(one for one in results.before if one.scores),  # of the change exam alone, answers before have no scores
        results.reference,
        folder,
        alone,
        before_name,
        results.methods,
        tuple(exam for exam in results.exams.values() if exam.role == "select"),
    )


def _end(name: str) -> str:
    """A model's name; of a long path the last three parts, as of a model that a study kept."""
    parts = name.rstrip("/").split("/")
    return name if len(parts) <= 3 else "\u2026/" + "/".join(parts[-3:])


def _named_by_model(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    return tuple(cell if cell.method == NOISE_FLOOR else replace(cell, method=cell.model) for cell in cells)


def rows_of(results: Results, cells: tuple[Cell, ...] | None = None) -> tuple[Row, ...]:
    """The main table's rows: results.json's own summary, with the cells behind each row; failed ones have no scores."""
    if cells is None:
        cells = tuple(_bare_cell(line) for line in results.cells)
    summary = {(s.model, s.method, s.checkpoint): s for s in results.summary or summarise(results.cells)}
    grouped: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.model, cell.method, cell.checkpoint), []).append(cell)
    rows = []
    for key, members in grouped.items():
        done = tuple(cell for cell in members if cell.done)
        one = summary.get(key)
        if one is None:
            rows.append(Row(*key, {}, {}, {}, done))
        else:
            rows.append(Row(*key, one.scores, one.ci95, one.n, done, floor=one.floor))
    return tuple(_apart(row) for row in rows)


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


def _bare_cell(line: Line, **files: Any) -> Cell:
    return Cell(
        model=line.model,
        method=line.method,
        change=line.change,
        seed=line.seed,
        checkpoint=line.checkpoint,
        status=line.status,
        error=line.error,
        scores=line.scores,
        ci95=line.ci95,
        n=line.n,
        cost=line.cost,
        step=line.step,
        folder=line.folder,
        compare={name: made for name, one in line.compare.items() if (made := compared(one)) is not None},
        drift=line.drift,
        notes=line.notes,
        stages=line.stages,
        **files,
    )


def _cell(line: Line, folder: Path, problems: list[str]) -> Cell:
    """A cell of results.json with the files of its folder."""
    own = folder / line.folder
    if not line.folder or not own.is_dir():
        if line.done:
            problems.append(f"{line.folder}: no such folder")
        return _bare_cell(line)
    home = own.parents[1] if own.parent.name == "checkpoints" else own  # a checkpoint's folder has samples only
    try:
        env: Any = parse_json(_text(home / "env.json", None) or "{}")
    except ValueError:
        problems.append(f"{(home / 'env.json').relative_to(folder)}: not valid JSON, left out")
        env = {}
    return _bare_cell(
        line,
        metrics=tuple(_jsonl(home / "metrics.jsonl", folder, problems)),
        samples=tuple(
            row
            for row in _jsonl(own / "samples.jsonl", folder, problems)
            if row.get("change", line.change) == line.change  # a file may have several changes
        ),
        config=_text(home / "config.yaml", None),
        env=env if isinstance(env, dict) else {},
    )


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
