"""Exams on your own files, for `posttrain exam M --exam KIND=PATH` and `--exams FILE`.

DIR/results.json                          scores, intervals, costs, comparisons
DIR/exams/<name>.jsonl                    every sample of MODEL, appended while it runs
DIR/before/<model>/exams/<name>.jsonl     the same of the model before
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from posttrain.cli.exam_output import compared_results, cost_line, print_results, results_document, shown
from posttrain.cli.options import talk
from posttrain.config.base import ByKind, Config
from posttrain.config.load import check, load_yaml
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.studies.config import safe_name

if TYPE_CHECKING:
    from posttrain.exams.running import TaskResult
    from posttrain.exams.task import Task
    from posttrain.inference.protocol import Respondent

__all__ = ["ExamsFile", "asked_tasks", "exam_tasks"]


class ExamsFile(Config):
    """A YAML file of exams, for `--exams`."""

    SCHEMA: ClassVar[str] = "exams"

    exams: tuple[Annotated[Config, ByKind("exam")], ...] = Field(min_length=1)
    """The exams: a list of kinds, or of {kind, path, ...}."""


class Wanted(NamedTuple):
    """An exam to be taken. base: what its paths are relative to."""

    name: str
    kind: str
    config: Any
    base: Path


def exam_tasks(
    model: str,
    load: Callable[[str], Respondent],
    *,
    exams: Sequence[str] = (),
    exams_file: Path | None = None,
    before: str | None = None,
    output: Path | None = None,
    table: bool = True,
    limit: int | None = None,
    restart: bool = False,
    sets: Sequence[str] = (),
    by_group: bool = False,
) -> dict[str, Any]:
    """Put every exam to the model (and to the model before); the document of results.json.

    exams: `KIND` or `KIND=PATH`; exams_file: a YAML file with `exams:`; load: name -> a respondent, called once per
    model; limit: overrides that of each exam; restart: samples on the disk are thrown away; sets: `--set` of the file;
    by_group: print scores of groups, however many.
    """
    tasks = asked_tasks(exams, exams_file, limit, sets)
    runs: dict[str, dict[str, TaskResult]] = {}
    # both before one of them is asked for hours: a name may be wrong, and the folder another model's
    respondents = {name: load(name) for name in dict.fromkeys((model, before)) if name}
    for name in dict.fromkeys([before, model] if before else [model]):
        assert name is not None
        folder = None if output is None else output if name == model else output / "before" / safe_name(name)
        runs[name] = _run(respondents[name], tasks, folder, restart=restart)
    compared = compared_results(runs[before], runs[model]) if before and before != model else {}
    if table:
        print_results(model, runs[model], before, runs.get(before or ""), compared, by_group=by_group)
    return results_document(model, runs[model], before, runs.get(before or ""), compared)


def asked_tasks(exams: Sequence[str], exams_file: Path | None, limit: int | None, sets: Sequence[str]) -> list[Task]:
    """The exams asked for, read; no model is needed for that."""
    return _tasks(_wanted(exams, exams_file, limit, sets))


# ---- what is asked for -------------------------------------------------------------------------------------------


def _wanted(exams: Sequence[str], exams_file: Path | None, limit: int | None, sets: Sequence[str]) -> list[Wanted]:
    """The configs with their names, which must differ; a kind that stands twice is told apart by its file's name."""
    configs: list[tuple[Any, Path]] = []
    if exams_file is not None:
        loaded = load_yaml(exams_file, ExamsFile, sets)
        configs += [(config, exams_file.parent) for config in loaded.exams]
    for text in exams:
        kind, _, path = text.partition("=")
        node = {"exams": [{"kind": kind, **({"path": path} if path else {})}]}
        configs.append((check(node, ExamsFile, f"--exam {text}").exams[0], Path.cwd()))
    if limit is not None:
        configs = [(config.model_copy(update={"limit": limit}), base) for config, base in configs]
    often = Counter(config.label for config, _ in configs)
    wanted = []
    for config, base in configs:
        path = config.model_dump().get("path")
        own = f"{config.label}-{Path(path).stem.removeprefix('builtin:')}" if path else config.label
        wanted.append(Wanted(own if often[config.label] > 1 else config.label, config.kind, config, base))
    twice = [name for name, count in Counter(safe_name(w.name) for w in wanted).items() if count > 1]
    if twice:
        cause = f"several exams are called {', '.join(twice)}"
        raise ConfigError(Problem(str(exams_file or "--exam"), cause, "give each a `name` of its own in the YAML"))
    return wanted


def _tasks(wanted: Sequence[Wanted]) -> list[Task]:
    """Every exam read before any model is; what is wrong with any of them is told at once."""
    from posttrain.exams.task import build

    tasks: list[Task] = []
    errors: list[PosttrainError] = []
    for one in wanted:
        try:
            config = one.config if one.name == one.config.label else one.config.model_copy(update={"name": one.name})
            tasks.append(build(config, one.base))
        except PosttrainError as error:
            errors.append(error)
    if len({type(error) for error in errors}) == 1:
        raise type(errors[0])(*(problem for error in errors for problem in error.problems))
    if errors:
        raise ConfigError(*(problem for error in errors for problem in error.problems))
    return tasks


# ---- running -----------------------------------------------------------------------------------------------------


def _run(respondent: Respondent, tasks: Sequence[Task], folder: Path | None, *, restart: bool) -> dict[str, TaskResult]:
    from posttrain.exams.running import run_task

    results: dict[str, TaskResult] = {}
    for number, task in enumerate(tasks, start=1):
        path = folder / "exams" / f"{safe_name(task.name)}.jsonl" if folder else None
        head = f"[{number}/{len(tasks)}] {task.name} on {respondent.name}"
        with shown(head) as tell:
            results[task.name] = run_task(respondent, task, samples_path=path, on_progress=tell, restart=restart)
        count = len(results[task.name].samples)
        talk(f"{head}: {count} sample{'' if count == 1 else 's'}, {cost_line(results[task.name].cost)}")
    return results
