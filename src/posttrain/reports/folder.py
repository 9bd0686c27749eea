"""Read a run folder for the report: results, samples, loss curves and configs. Only files are read, nothing is run.

The run may still be in progress or may have been killed. Missing files and an incomplete last line are left out and
listed in `Run.problems`, which the report prints.
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
"""(model, method). Each of these pairs has its own mark in plots and tables."""

STAGES = "stages."
"""The prefix of the names of scores over stages."""


class Cell(Line):
    """One cell: a line of results.json with the content of the cell's folder. metrics: the lines of metrics.jsonl;
    samples: the lines of samples.jsonl; edits: the lines of edits.jsonl, one for each edit; config: the text of
    config.yaml; env: the content of env.json.
    """

    metrics: tuple[dict[str, Any], ...] = ()
    samples: tuple[dict[str, Any], ...] = ()
    edits: tuple[dict[str, Any], ...] = ()
    config: str = ""
    env: dict[str, Any] = Field(default_factory=dict)

    @property
    def version(self) -> Version:
        """Return its (model, method)."""
        return self.model, self.method


class Row(Summary):
    """One row of the main table.

    cells: its cells that have scores; transfer: the scores over stages, `acc`, `bwt`, `fwt` and `forgetting`, which do
    not belong to an exam. Their intervals are in `ci95`, under their names with the prefix `STAGES`.
    """

    cells: tuple[Cell, ...] = ()
    transfer: dict[str, float] = Field(default_factory=dict)

    @property
    def version(self) -> Version:
        """Return its (model, method)."""
        return self.model, self.method

    @property
    def is_floor(self) -> bool:
        """Whether this is the row of the noise floor."""
        return self.method == NOISE_FLOOR

    def below(self, key: str) -> bool:
        """Whether a score is a loss: a paired test finds it below the noise floor."""
        return key in self.floor and self.floor[key].below

    def unsure(self, key: str) -> bool:
        """Whether a score fell, but on so few questions that no test could call it a loss."""
        return key in self.floor and self.floor[key].unsure

    @property
    def step(self) -> int | None:
        """Return the training step of the checkpoint, the largest over the cells; None if unknown."""
        return max((cell.step for cell in self.cells if cell.step is not None), default=None)

    def interval(self, key: str) -> tuple[float, float] | None:
        """Return the 95 % interval of an exam's score, or None.

        All cells answer the same questions, so differences between cells say little about the uncertainty. The ends of
        the interval are therefore the means of the ends of the cells' intervals.
        """
        own = [cell.ci95[key] for cell in self.cells if key in cell.ci95]
        if not own:
            return self.ci95.get(key)
        return numbers.mean([low for low, _ in own]), numbers.mean([high for _, high in own])

    @cached_property
    def compare(self) -> dict[str, Compared]:
        """Return exam -> comparison with the untouched model, pooled over the row's cells."""
        names = dict.fromkeys(name for cell in self.cells for name in cell.compare)
        pooled = ((name, pool([cell.compare[name] for cell in self.cells if name in cell.compare])) for name in names)
        return {name: one for name, one in pooled if one is not None}

    @cached_property
    def drift(self) -> dict[str, Drift]:
        """Return capability group -> relative change, the mean over the row's cells."""
        return pool_drift([cell.drift for cell in self.cells])

    @cached_property
    def cost(self) -> dict[str, float]:
        """Return the mean of each cost over the row's finished cells; for peaks, the maximum."""
        values: dict[str, list[float]] = {}
        for cell in self.cells:
            for key, value in cell.cost.items():
                values.setdefault(key, []).append(value)
        return {k: max(v) if k.startswith("peak") else numbers.mean(v) for k, v in values.items()}


@dataclass(frozen=True)
class Run:
    """All data of a report. results: the content of results.json; cells: its cells with their files; rows: the rows of
    the main table; study, study_text: the content and the text of study.yaml; problems: what could not be read.
    """

    results: Results
    cells: tuple[Cell, ...] = ()
    rows: tuple[Row, ...] = ()
    study: Mapping[str, Any] = field(default_factory=dict)
    study_text: str = ""
    problems: tuple[str, ...] = ()
    folder: Path | None = None
    """The run folder."""

    @property
    def alone(self) -> bool:
        """Whether `posttrain exam` wrote the run: there is no study, and the rows have the names of the models."""
        return self.results.study == "exam"

    @property
    def before_name(self) -> str:
        """Return the name of the model before in a run of `posttrain exam`; empty when there is none."""
        return self.results.before[0].model if self.alone and self.results.before else ""

    @cached_property
    def exams(self) -> tuple[ExamInfo, ...]:
        """Return the exams, other than the change exam, with the role `report`; those of other roles chose settings."""
        return tuple(one for one in self.results.exams.values() if one.kind != CHANGE and one.role == "report")

    @cached_property
    def before(self) -> tuple[Untouched, ...]:
        """Return the untouched models that have scores; when only the change exam was taken, they have none."""
        return tuple(one for one in self.results.before if one.scores)

    @property
    def title(self) -> str:
        """Return the title of the page: the study's title or name, or the models of `posttrain exam`. A model that is a
        long path is shortened to its last parts, unless two models would then have the same name.
        """
        if not (self.alone and self.models):
            return str(self.study.get("title") or self.results.study)
        names = [name for name in (self.before_name, *self.models) if name]
        ends = {name: _end(name) for name in names}
        if len({*ends.values()}) < len(ends):  # the difference is in an earlier part of the paths
            ends = {name: name for name in names}
        after = ", ".join(ends[name] for name in self.models)
        return f"{ends[self.before_name]} \u2192 {after}" if self.before_name else after

    @property
    def notes(self) -> str:
        """Return the notes in study.yaml, or an empty text."""
        return str(self.study.get("notes") or "")

    @property
    def trained_once(self) -> tuple[Cell, ...]:
        """Return every cell of the run once, by its last line, so that its costs count only once: several lines of one
        cell are its checkpoints and the changes that it taught together.
        """
        return tuple({(c.model, c.method, c.seed, c.hash or c.change): c for c in self.cells}.values())

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Return the models in the order of the rows."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods in the order of the rows."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def changes(self) -> tuple[str, ...]:
        """Return the changes in the order of the cells. A cell with only other exams has an empty name as its change,
        which is left out if any cell has a change.
        """
        named = tuple(dict.fromkeys(cell.change for cell in self.cells if cell.change))
        return named or tuple(dict.fromkeys(cell.change for cell in self.cells))

    @property
    def stepped(self) -> bool:
        """Whether several checkpoints of a method, with known steps, were examined."""
        return any(len({r.step for r in self.rows_of(*key) if r.step is not None}) > 1 for key in self.versions)

    @cached_property
    def versions(self) -> tuple[Version, ...]:
        """Return every (model, method) in the order of the rows, which is also the order of the marks."""
        return tuple(dict.fromkeys(row.version for row in self.rows))

    @property
    def groups(self) -> set[str]:
        """Return the groups of all scores in the shown rows."""
        return {numbers.group_of(key) for row in self.shown for key in row.scores}

    def of_change(self, key: str) -> bool:
        """Whether a score belongs to the change exam."""
        return all(exam.score(key) is None for exam in self.results.exams.values() if exam.kind != CHANGE)

    def rows_of(self, model: str, method: str) -> tuple[Row, ...]:
        """Return the rows of a model and a method, sorted by step with `final` last."""
        own = [row for row in self.rows if row.version == (model, method)]
        return tuple(sorted(own, key=lambda row: (row.checkpoint == "final", row.step or 0)))

    @cached_property
    def final(self) -> tuple[Row, ...]:
        """Return for every model and method its last checkpoint with scores, or its last one if none has any."""
        every = [self.rows_of(*version) for version in self.versions]
        return tuple(next((row for row in reversed(rows) if row.scores), rows[-1]) for rows in every)

    @property
    def shown(self) -> tuple[Row, ...]:
        """Return the rows of the change exam's tables. These are the final rows if a separate section shows the other
        checkpoints, and otherwise all rows.
        """
        own = any(row.checkpoint.startswith(("stage-", "blend-", "strength-", "after-")) for row in self.rows)
        return self.final if self.stepped or own else self.rows

    def untouched(self, model: str) -> Untouched | None:
        """Return the exams of the untouched model, or None; in `posttrain exam` it may have another name."""
        if self.alone and len(self.before) == 1:
            return self.before[0]
        return next((one for one in self.before if one.model == model), None)

    def method_config(self, name: str) -> Mapping[str, Any]:
        """Return a method's configuration from the config.yaml of a cell, or else from study.yaml, or else {}."""
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
    """Read a run folder. Raise MissingError without results.json, and DataError when it is not of the kind that
    `posttrain run` writes.
    """
    problems: list[str] = []
    results, study_file = read_results(folder), folder / "study.yaml"
    if results.study == "exam":  # written by `posttrain exam`, which has no study
        parts: dict[str, tuple[Line | Summary, ...]] = {"cells": results.cells, "summary": results.summary}
        for part, each in parts.items():  # its rows are named by the models
            named = (one if one.method == NOISE_FLOOR else one.model_copy(update={"method": one.model}) for one in each)
            results = results.model_copy(update={part: tuple(named)})
    elif not study_file.is_file():
        problems.append(f"{study_file.name}: no such file")
    study_text = _text(study_file)
    study = _yaml(study_text, "study.yaml", problems)
    cells = tuple(_cell(line, folder, problems) for line in results.cells)
    return Run(results, cells, rows_of(results, cells), study, study_text, tuple(problems), folder)


def _end(name: str) -> str:
    """Return a model's name; a path of more than three parts, such as that of a kept model, is cut to the last 3."""
    parts = name.rstrip("/").split("/")
    return name if len(parts) <= 3 else "\u2026/" + "/".join(parts[-3:])


def rows_of(results: Results, cells: tuple[Cell, ...] = ()) -> tuple[Row, ...]:
    """Return the rows of the main table: the summary of results.json, each row with its finished cells. cells: the
    cells of the results with the content of their folders; if empty, those of `results` are used.
    """
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
    """Return a cell of results.json with the files of its folder; add what cannot be read to `problems`."""
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
        edits=tuple(read_lines(home / "edits.jsonl", folder, problems)),
        config=_text(home / "config.yaml"),
        env=env if isinstance(env, dict) else {},
    )


def read_lines(path: Path, folder: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file to which a process may still append; nothing when the file is missing. A line that
    cannot be read is added to `problems` and left out. folder: paths in `problems` are relative to it.
    """
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
