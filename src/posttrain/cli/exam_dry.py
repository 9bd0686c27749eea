"""`posttrain exam --dry-run`: print the models and the questions of an exam, and its time, without loading a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.cli.options import emit, print_lines, time_line
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.language import shown

if TYPE_CHECKING:
    from posttrain.config.change import Change
    from posttrain.exams.exam import Exam
    from posttrain.exams.task import Task


def dry_run(
    models: Sequence[str],
    *,
    changes: Sequence[Change],
    exams: Sequence[Exam],
    harness: str | None,
    floor: bool,
    max_new_tokens: int,
    output: Path | None,
    json: bool,
    **how: bool,
) -> None:
    """Print what the exam would ask, and an estimate of its time.

    models: the model before if it is named, then the model; harness: the names of lm-eval's tasks; floor: the noise
    floor is examined too; how: keywords for loading tokenizers and configurations.
    Raise MissingError, as the exam itself does, for an incomplete local model, such as an unfinished training's folder.
    Raise DataError for texts that a model cannot be asked, as far as its tokenizer and configuration show.
    """
    from posttrain.exams.change import change_task
    from posttrain.inference.opening import is_remote
    from posttrain.models.load import check_folder

    for name in models:
        if not is_remote(name):
            check_folder(name)
    tasks: list[Task[Any]] = [change_task(change, max_new_tokens=max_new_tokens) for change in changes]
    tasks += [task for exam in exams for task in exam.tasks(changes)]
    unread = _check(models, tasks, **how)
    asked = [(task.change or task.name, len(task.items), _requests(task)) for task in tasks]
    problems: list[str] = []
    wall_s: float | None = None
    try:
        if tasks:
            wall_s = _guess(models[-1], tasks, len(models) + (1 if floor and changes else 0), **how)
    except PosttrainError as error:
        problems.append(shown(error))
    if json:
        rows = [{"exam": name, "items": items, "requests": requests} for name, items, requests in asked]
        emit({"models": list(models), "exams": rows, "tasks": harness, "noise_floor": floor, "wall_s": wall_s})
        return
    print_lines(
        f"model       {models[-1]}",
        *(f"before      {name}" for name in models[:-1]),
        *(
            f"exam        {name}: {items:,} item{'' if items == 1 else 's'}, "
            f"{requests:,} request{'' if requests == 1 else 's'} to each"
            for name, items, requests in asked
        ),
        f"lm-eval     {harness}: counted when its data is loaded" if harness else "",
        "floor       the model before is asked the same in other arithmetic" if floor and changes else "",
        f"output      {output}" if output else "",
        *(f"texts       not checked: {unknown}" for unknown in unread),
        time_line(wall_s) if wall_s is not None else "",
        *(f"time        not guessed: {unknown}" for unknown in problems),
    )


def _requests(task: Task[Any]) -> int:
    """Return the number of requests of a task to one model."""
    return sum(not ask.of for item in task.items for ask in item.asks) * (1 + len(task.perturbations))


def _check(models: Sequence[str], tasks: Sequence[Task[Any]], **how: bool) -> list[str]:
    """Check that the models can be asked the tasks; return a message for each model that could not be checked. Raise
    DataError with all problems together."""
    from posttrain.exams.running import check_task
    from posttrain.inference.opening import is_remote, read_prompts

    unread: list[str] = []
    problems: dict[Problem, None] = {}
    for name in (name for name in models if not is_remote(name)):
        try:
            reader = read_prompts(name, **how)
        except PosttrainError as error:
            unread.append(shown(error))
            continue
        for task in tasks:
            try:
                check_task(reader, name, task)
            except PosttrainError as error:
                problems |= dict.fromkeys(error.problems)
    if problems:
        raise DataError(*problems)
    return unread


def _guess(model: str, tasks: Sequence[Task[Any]], times: int, **how: bool) -> float:
    """Estimate the seconds from the model's size and its tokens per character. times: number of models examined."""
    from posttrain.exams.exam import Part
    from posttrain.studies.estimate import size_of, work_of
    from posttrain.studies.speed import exam_s, flops_per_s

    work = [work_of(Part(task.info, task.items, 1 + len(task.perturbations))) for task in tasks]
    questions = [item.question for task in tasks for item in task.items[:100] if item.question]
    parameters, per_character = size_of(model, questions, **how)
    speed = flops_per_s()
    return times * sum(exam_s(parameters, round(read * per_character) + written, 1, speed) for read, written in work)
