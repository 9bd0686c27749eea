"""A run folder as the report sees it: results, samples, loss curves, configs. Only files are read, nothing is run.

A run may still be going or may have been killed: missing files and a torn last line are left out and counted in
`Run.problems`, which the report prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from posttrain.config.json_text import parse_json
from posttrain.config.yaml_text import parse_yaml, plain
from posttrain.errors import ConfigError
from posttrain.exams.capabilities import Drift
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.results import CHANGE, ExamInfo, Line, Results, Summary, Untouched, read_results
from posttrain.exams.summary import summarise
from posttrain.reports import numbers
from posttrain.reports.examined import Compared, pool, pool_drift

__all__ = ["STAGES", "Cell", "Row", "Run", "Version", "read_lines", "read_run", "rows_of"]


Version = tuple[str, str]
"""A model and a method: what has a mark of its own in plots and tables."""

STAGES = "stages."
"""How the scores over stages begin."""


class Cell(Line):
    """One line of results.json, with what its folder holds."""

    metrics: tuple[dict[str, Any], ...] = ()
    samples: tuple[dict[str, Any], ...] = ()
    config: str = ""
    env: dict[str, Any] = Field(default_factory=dict)

    @property
    def version(self) -> Version:
        """Its model and method."""
        return self.model, self.method


class Row(Summary):
    """One line of the main table. cells: those behind it that have scores; transfer: over stages, `acc`, `bwt`, `fwt`
    and `forgetting`, which are scores of no exam (their intervals are in ci95, by their whole names)."""

    cells: tuple[Cell, ...] = ()
    transfer: dict[str, float] = Field(default_factory=dict)

    @property
    def version(self) -> Version:
        """Its model and method."""
        return self.model, self.method

    @property
    def is_floor(self) -> bool:
        """Whether this is the noise floor's own row."""
        return self.method == NOISE_FLOOR

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
        pooled = ((name, pool([cell.compare[name] for cell in self.cells if name in cell.compare])) for name in names)
        return {name: one for name, one in pooled if one is not None}

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

    results: Results
    cells: tuple[Cell, ...] = ()
    rows: tuple[Row, ...] = ()
    study: Mapping[str, Any] = field(default_factory=dict)
    study_text: str = ""
    problems: tuple[str, ...] = ()
    place: Path | None = None
    """The run folder."""

    @property
    def alone(self) -> bool:
        """Whether `posttrain exam` wrote it: no study, one model and perhaps one before; its rows are named by it."""
        return self.results.study == "exam"

    @property
    def before_name(self) -> str:
        """Of `posttrain exam`: the model before, empty where there is none."""
        return self.results.before[0].model if self.alone and self.results.before else ""

    @cached_property
    def exams(self) -> tuple[ExamInfo, ...]:
        """The exams beyond the change exam whose scores are the result; the others have chosen settings."""
        return tuple(one for one in self.results.exams.values() if one.kind != CHANGE and one.role == "report")

    @cached_property
    def before(self) -> tuple[Untouched, ...]:
        """The untouched models that have scores; of the change exam alone, answers before have none."""
        return tuple(one for one in self.results.before if one.scores)

    @property
    def title(self) -> str:
        """The study's own title, else its name; of `posttrain exam`, the models, of a path its last parts."""
        if not (self.alone and self.models):
            return str(self.study.get("title") or self.results.study)
        names = [name for name in (self.before_name, *self.models) if name]
        ends = {name: _end(name) for name in names}
        if len({*ends.values()}) < len(ends):  # what tells them apart stands further in front
            ends = {name: name for name in names}
        after = ", ".join(ends[name] for name in self.models)
        return f"{ends[self.before_name]} \u2192 {after}" if self.before_name else after

    @property
    def notes(self) -> str:
        """The study's own words about itself."""
        return str(self.study.get("notes") or "")

    @property
    def trained_once(self) -> tuple[Cell, ...]:
        """One entry per model x method x change x seed: the last checkpoint's, so that costs are counted once."""
        return tuple({(c.model, c.method, c.change, c.seed): c for c in self.cells}.values())

    @cached_property
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

    @cached_property
    def versions(self) -> tuple[Version, ...]:
        """Every (model, method) in the order of the rows; the marks of the plots go by it."""
        return tuple(dict.fromkeys(row.version for row in self.rows))

    @property
    def groups(self) -> set[str]:
        """The groups of scores that the tables of the change exam show."""
        return {numbers.group_of(key) for row in self.shown for key in row.scores}

    def of_change(self, key: str) -> bool:
        """Whether a score is the change exam's."""
        return all(exam.score(key) is None for exam in self.results.exams.values() if exam.kind != CHANGE)

    def rows_of(self, model: str, method: str) -> tuple[Row, ...]:
        """The rows of a model and a method, its checkpoints by step."""
        own = [row for row in self.rows if row.version == (model, method)]
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
        """A model's exams before anything was done to it; `posttrain exam` may name it otherwise."""
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
    results, study_file = read_results(folder), folder / "study.yaml"
    if results.study == "exam":  # of `posttrain exam`, which has no study
        parts: dict[str, tuple[Line | Summary, ...]] = {"cells": results.cells, "summary": results.summary}
        for part, each in parts.items():  # the models are the names of its rows
            named = (one if one.method == NOISE_FLOOR else one.model_copy(update={"method": one.model}) for one in each)
            results = results.model_copy(update={part: tuple(named)})
    elif not study_file.is_file():
        problems.append(f"{study_file.name}: no such file")
    study_text = _text(study_file)
    study = _yaml(study_text, "study.yaml", problems)
    cells = tuple(_cell(line, folder, problems) for line in results.cells)
    return Run(results, cells, rows_of(results, cells), study, study_text, tuple(problems), folder)


def _end(name: str) -> str:
    """A model's name; of a long path the last three parts, as of a model that a study kept."""
    parts = name.rstrip("/").split("/")
    return name if len(parts) <= 3 else "\u2026/" + "/".join(parts[-3:])


def rows_of(results: Results, cells: tuple[Cell, ...] = ()) -> tuple[Row, ...]:
    """The main table's rows: results.json's own summary, with the cells behind each row; failed ones have no scores.
    cells: those of the results, with what their folders hold."""
    summary = {(one.model, one.method, one.checkpoint): one for one in results.summary or summarise(results.cells)}
    grouped: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells or [Cell(**dict(line)) for line in results.cells]:
        grouped.setdefault((cell.model, cell.method, cell.checkpoint), []).append(cell)
    rows = []
    for key, members in grouped.items():
        found = summary.get(key) or Summary(model=key[0], method=key[1], checkpoint=key[2])
        scores = {name: value for name, value in found.scores.items() if not name.startswith(STAGES)}
        transfer = {name.removeprefix(STAGES): found.scores[name] for name in found.scores if name not in scores}
        done = tuple(cell for cell in members if cell.done)
        rows.append(Row(**{**dict(found), "scores": scores}, cells=done, transfer=transfer))
    return tuple(rows)


def _cell(line: Line, folder: Path, problems: list[str]) -> Cell:
    """A cell of results.json with the files of its folder."""
    own = folder / line.folder
    if not line.folder or not own.is_dir():
        if line.done:
            problems.append(f"{line.folder}: no such folder")
        return Cell(**dict(line))
    home = own.parents[1] if own.parent.name == "checkpoints" else own  # a checkpoint's folder has samples only
    try:
        env: Any = parse_json(_text(home / "env.json") or "{}")
    except ValueError:
        problems.append(f"{(home / 'env.json').relative_to(folder)}: not valid JSON, left out")
        env = {}
    return Cell(
        **dict(line),
        metrics=tuple(read_lines(home / "metrics.jsonl", folder, problems)),
        samples=tuple(
            row
            for row in read_lines(own / "samples.jsonl", folder, problems)
            if row.get("change", line.change) == line.change  # a file may have several changes
        ),
        config=_text(home / "config.yaml"),
        env=env if isinstance(env, dict) else {},
    )


def read_lines(path: Path, folder: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file that is appended to, none where it is missing; a line that cannot be read is counted in
    `problems`, not fatal. folder: its path in them begins below it."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            problems.append(f"{path.relative_to(folder)}:{number}: not valid JSON, left out")
            continue
        if isinstance(row, dict):
            yield row


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig") if path.is_file() else ""


def _yaml(text: str, name: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        node = plain(parse_yaml(text, name)) if text else {}
    except ConfigError as error:
        problems += map(str, error.problems)
        return {}
    return node if isinstance(node, dict) else {}
