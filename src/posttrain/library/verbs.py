"""`pt.train`, `pt.exam`, `pt.compare`, `pt.study`: the verbs as functions, with the keys of the YAML as keywords."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, InstanceOf

from posttrain.config.base import Config
from posttrain.config.change import Change
from posttrain.config.load import check, load_yaml
from posttrain.data.changes import load_changes
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.exams.results import Line, read_results, write_results
from posttrain.exams.summary import summarise
from posttrain.exams.task import content_id
from posttrain.inference.protocol import Respondent
from posttrain.inference.respondents import ModelRespondent
from posttrain.library.models import SCRATCH, Count, Model, as_arguments, load, respondent_of
from posttrain.library.results import Examination
from posttrain.models.disk import safe_name, write_whole
from posttrain.models.fingerprint import file_fingerprint
from posttrain.models.load import LoadedModel
from posttrain.studies.bench import Bench
from posttrain.studies.candidates import END, CellContext
from posttrain.studies.config import Study
from posttrain.studies.events import Watcher
from posttrain.studies.exam import METHOD, ExamRun, ExamsFile, Floor, PromptMode, build_exams
from posttrain.studies.methods.train import train as train_method
from posttrain.studies.plan import make_plan, select
from posttrain.studies.run import run_study
from posttrain.studies.train_config import TrainMethodConfig
from posttrain.training.checkpoints import put_aside
from posttrain.training.config import BatchConfig, OptimizerConfig
from posttrain.training.folder import OURS, RunFolder
from posttrain.training.lock import check_free
from posttrain.training.metrics import MetricsLog

__all__ = ["Changes", "StudyFile", "changes_of", "compare", "exam", "study", "train"]

Asked = InstanceOf[Model] | Respondent | str | Path
"""What can be examined: a loaded model, a respondent, or the name of one."""
Changes = str | Path | Change | Mapping[str, Any] | Sequence[str | Path | Change | Mapping[str, Any]]
"""Paths or globs of change files or editing data sets, changes, or mappings of their keys."""
ExamsGiven = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""Kinds of exams, or mappings of `{kind, path, ...}` as in YAML."""

Rows = str | Path | Iterable[Mapping[str, Any]]
"""A file of rows, or rows."""
OF_STUDIES = {"kind", "name", "start", "inputs", "stages", "merge_back"}
"""Keys of a study's method `train` that mean nothing to one training."""
TRAINED = "trained.txt"
"""The file in `output` with the hash of what went into its finished training, and of that training's result."""


def changes_of(given: Changes | None, say: Callable[[str], None]) -> list[Change]:
    """Return the given changes, reading those in files. Raise ConfigError, with file and line, if one is faulty. say:
    takes a line about records of data sets that are left out."""
    each = [given] if isinstance(given, str | Path | Change | Mapping) else list(given or ())
    each = [check(dict(one), Change, "change") if isinstance(one, Mapping) else one for one in each]
    files = [str(one) for one in each if not isinstance(one, Change)]
    return [
        *(one for one in each if isinstance(one, Change)),
        *(load_changes(files, Path.cwd(), say=say) if files else ()),
    ]


@as_arguments
def train(
    base: InstanceOf[Model] | str | Path,
    data: Rows | None = None,
    *,
    change: Changes | None = None,
    name: str = "",
    output: str | Path | None = None,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
    restart: bool = False,
    say: Callable[[str], None] = lambda line: None,
    on_step: Callable[[Mapping[str, Any]], None] = lambda entry: None,
    **settings: Any,
) -> Model:
    """Train a copy of a model and return it; the base is not changed.

    data: a file of rows (any format of docs/data.md), or rows as mappings; change: changes that have targets to learn,
    with `data` or without; name: the new model's name; output: a folder for the training: the same call continues there
    after a kill, and its model stays there (`output/training/model`); restart: train anew all the same; say:
    takes lines for the user; on_step: called with each step (loss, tokens per second, ...);
    settings: the keys of a study's method `train` (objective, tuner, replay, penalty, optimizer, batch, max_length,
    precision, ...); keys of `optimizer` and `batch` may also be given directly: `max_steps=40`, `learning_rate=1e-4`.
    Raise ConfigError for an unknown key, if there is nothing to learn, or if the output holds a training of another
    call; DataError for rows that cannot be learned.
    """
    model = base if isinstance(base, Model) else load(base)
    changes = changes_of(change, say)
    if data is None and not changes:
        raise ConfigError(Problem("pt.train", "there is nothing to learn", "give data, a change, or both"))
    bench = Bench(model.name, base=Path.cwd(), loaded=model.loaded, forbidden=frozenset(), say=say)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
        if data is not None:
            settings["data"] = _file_of(data, Path(scratch))
        config = check({"kind": "train", **_nested(settings)}, TrainMethodConfig, "pt.train")
        folder = Path(scratch) / "trained" if output is None else _folder(output)[0]
        keep: Literal["none", "final"] = "none" if output is None else "final"
        cell = CellContext(tuple(changes), seed, folder, bench, bench, keep=keep, on_step=on_step)
        key = "" if output is None else _begin(config, cell, restart)
        (end,) = [candidate for candidate in train_method(config, cell) if candidate.point == END]
        if key:
            write_whole(folder / TRAINED, content_id(key, file_fingerprint(RunFolder(folder / "training").result)))
        log = MetricsLog(cell.metrics)
        log.read(sys.maxsize)
    assert isinstance(end.respondent, ModelRespondent)
    loaded = LoadedModel(end.respondent.model, end.respondent.tokenizer, name or f"{model.name} trained")
    return Model(loaded, tuple(log.history), dict(end.cost), tuple(end.notes), end.product)


def _begin(config: TrainMethodConfig, cell: CellContext, restart: bool) -> str:
    """Return the hash of what goes into the training. Raise ConfigError if the folder has the finished training of
    something else; training itself compares checkpoints."""
    run, noted = cell.folder / "training", cell.folder / TRAINED
    result = RunFolder(run).result
    if restart:
        check_free(run)
        put_aside(run, OURS)
    files = [Path(path) for name in [one.name for one in cell.changes] or [""] for path in config.files(name)]
    rows = [file_fingerprint(path) for path in files if path.is_file()]
    given = (config.model_dump(mode="json", exclude={"data"}), [one.model_dump_json() for one in cell.changes])
    key = content_id(cell.bench.fingerprint, *given, cell.seed, rows)
    known = noted.read_text(encoding="utf-8") if noted.is_file() else ""
    if RunFolder(run).result_in() is not None and known != content_id(key, file_fingerprint(result)):
        mend = "undo the change, choose another output folder, or start over with --restart"
        raise ConfigError(Problem(str(run), "was made by another configuration and is not resumed", mend))
    return key


def _file_of(data: Rows, scratch: Path) -> str:
    """Return the path of the file of rows; write rows that are given as mappings to a file in `scratch`. Raise
    DataError for rows that cannot be written."""
    if isinstance(data, str | Path):
        return str(Path(data).resolve()) if Path(data).exists() else str(data)
    path = scratch / "rows.jsonl"
    problems = []
    with path.open("wb") as file:
        for number, row in enumerate(data, 1):
            try:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            except (TypeError, ValueError) as error:
                problems.append(Problem(f"data:{number}", f"cannot be written as JSON: {error}"))
    if problems:
        raise DataError(*problems)
    return str(path)


def _nested(made: dict[str, Any]) -> dict[str, Any]:
    """Move the direct keys of `optimizer` and `batch` into these parts, and return the settings. Raise ConfigError with
    every unknown key."""
    method = TrainMethodConfig.model_fields.keys()
    known = {*method, *OptimizerConfig.model_fields, *BatchConfig.model_fields} - OF_STUDIES
    problems = []
    for key in made.keys() - known:
        close = get_close_matches(key, known, n=1)
        mend = "that is for studies" if key in OF_STUDIES else f"did you mean '{close[0]}'?" if close else ""
        problems.append(Problem("pt.train", f"unknown key '{key}'", mend))
    for part, kind in (("optimizer", OptimizerConfig), ("batch", BatchConfig)):
        own = {key: made.pop(key) for key in list(made) if key in kind.model_fields and key not in method}
        given = made.get(part, {})
        given = given.model_dump(exclude_unset=True) if isinstance(given, Config) else given
        if own and isinstance(given, Mapping):  # `check` refuses anything else
            twice = [key for key in own if key in given]
            problems += [Problem("pt.train", f"'{key}' is given twice, also in '{part}'") for key in twice]
            made[part] = {**given, **own}
    if problems:
        raise ConfigError(*problems)
    return made


@as_arguments
def exam(
    model: Asked,
    *,
    before: Asked | None = None,
    change: Changes | None = None,
    exams: ExamsGiven = (),
    output: str | Path | None = None,
    limit: Count | None = None,
    match: Literal["says", "first_sentence", "exact"] = "says",
    max_new_tokens: Count = 64,
    prompt_mode: PromptMode = "none",
    noise_floor: Floor = "auto",
    restart: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Examination:
    """Examine a model, alone or compared with the model before.

    change: changes to ask about: did the target change, did the rest follow, did everything else stay (this needs
    `before`; for an adapter the default is its base); exams: kinds such as `"refusal"` or mappings such as
    `{"kind": "mmlu", "path": "..."}`; output: a folder in which every answer is saved as it comes, so that the same
    call continues after a kill; the others are options of `posttrain exam`.
    Raise ConfigError, DataError and MissingError, with the cause and how to correct it.
    """
    changes = changes_of(change, say)
    each = [exams] if isinstance(exams, str | Mapping) else list(exams)
    tasks = [(one, Path.cwd()) for one in check({"exams": each}, ExamsFile, "exams").exams] if each else []
    if not changes and not tasks:
        raise ConfigError(Problem("pt.exam", "there is nothing to examine", "give a change, exams, or both"))
    folder, temporary = _folder(output)
    results = ExamRun(folder, match, max_new_tokens, prompt_mode, noise_floor, restart, say=say).take(
        respondent_of(model),
        before=None if before is None else respondent_of(before),
        changes=changes,
        exams=build_exams(tasks, limit),
    )
    return Examination(results, folder, temporary)


def _folder(output: str | Path | None) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """Create and return the output folder, or a temporary folder that is deleted with the results. Raise ConfigError
    if there can be no folder."""
    if output is not None:
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(Problem("output", f"{output} cannot be a folder: {error.strerror}")) from error
        return Path(output), None
    temporary = tempfile.TemporaryDirectory(prefix="posttrain-", ignore_cleanup_errors=True)
    return Path(temporary.name), temporary


@as_arguments
def compare(
    models: Mapping[str, Asked] | Sequence[Asked],
    *,
    before: Asked,
    change: Changes | None = None,
    exams: ExamsGiven = (),
    output: str | Path | None = None,
    **options: Any,
) -> Examination:
    """Examine several models and compare them with the model before, in one table and one report.

    models: a mapping from the names of their rows, or a list, with the models' own names; options: those of `exam`.
    Each model's answers are in a folder of its own below `output`. Raise ConfigError if no model is given, or if two
    have the same name.
    """
    named = models if isinstance(models, Mapping) else {respondent_of(one).name: one for one in models}
    if not named or len({safe_name(name) for name in named}) < len(models):  # each has a folder
        names = list(named)
        raise ConfigError(Problem("pt.compare", f"models with names that differ are expected, got {names}"))
    folder, temporary = _folder(output)
    cells: list[Line] = []
    for name, one in named.items():
        at = Path("models", safe_name(name))
        how = {**options, "noise_floor": "none"} if cells else options
        found = exam(one, before=before, change=change, exams=exams, output=folder / at, **how).results
        was = tuple(line.model_copy(update={"folder": str(at / line.folder)}) for line in found.before)
        for line in found.cells:
            head = {"model": was[0].model if was else line.model, "folder": str(at / line.folder)}
            cells.append(line.model_copy(update={**head, "method": name if line.method == METHOD else line.method}))
    own = {"before": was, "cells": tuple(cells), "summary": summarise(cells), "planned": len(cells)}
    write_results(folder, found.model_copy(update={"study": "compare", **own}))
    return Examination(read_results(folder), folder, temporary)


@dataclass(frozen=True)
class StudyFile:
    """A study that was read and checked. base: the folder that its relative paths are relative to."""

    config: Study
    base: Path

    @as_arguments
    def run(
        self,
        *,
        output: str | Path | None = None,
        only: Sequence[str] = (),
        changes: Count | None = None,
        restart: bool = False,
        jobs: Count = 1,
        on: str = "",
        watcher: Watcher | None = None,
    ) -> Examination:
        """Run the cells that are not done and return all results. The options are those of `posttrain run`.

        Cells that fail are in the results with their errors. Raise ConfigError, DataError and MissingError for errors
        that are found before any cell runs.
        """
        known = load_changes(self.config.changes, self.base) if self.config.changes else []
        plan = make_plan(self.config, known, self.base)
        folder = _folder(output)[0] if output is not None else self.config.folder(self.base)
        chosen = select(plan, only=only, changes=changes)
        run = partial(run_study, self.config, plan, chosen, base=self.base, folder=folder)
        run(watcher=watcher or Watcher(), restart=restart, jobs=jobs, on=on)
        return Examination(read_results(folder), folder)


@as_arguments
def study(given: str | Path | Mapping[str, Any], **settings: Any) -> StudyFile:
    """Read a study from a YAML file, or from a mapping of its keys. settings: keys that replace those of the file, such
    as `seeds=[0, 1]`. Raise ConfigError with file, line and advice.
    """
    if isinstance(given, Mapping):
        return StudyFile(check({**given, **settings}, Study, "pt.study"), Path.cwd())
    sets = [f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in settings.items()]
    return StudyFile(load_yaml(Path(given), Study, sets), Path(given).parent)
