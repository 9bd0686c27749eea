"""`posttrain exam --dry-run`: what would be asked of which models, and about how long it takes; nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from posttrain.cli.guessing import time_line
from posttrain.cli.options import emit, print_line
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.language import shown

if TYPE_CHECKING:
    from posttrain.config.change import Change
    from posttrain.exams.task import Task

__all__ = ["dry_run"]


class Asked(NamedTuple):
    """An exam: its items, the requests to one model, the characters that are read and the tokens that are written."""

    name: str
    items: int
    requests: int
    characters: int
    written: int
    sample: tuple[str, ...]


def dry_run(
    models: Sequence[str],
    *,
    changes: Sequence[str],
    tasks: Sequence[Task],
    harness: str | None,
    floor: bool,
    max_new_tokens: int,
    output: Path | None,
    offline: bool,
    trust_remote_code: bool,
    json: bool,
) -> None:
    """Print it. models: the model, and the one before where it is named; floor: the noise floor is examined as well.

    MissingError as of the exam itself for a local model that is not whole, such as an unfinished training's folder.
    DataError for texts that a model could not be asked, as far as its tokenizer and configuration tell.
    """
    from posttrain.config.change import load_changes
    from posttrain.inference.opening import is_remote
    from posttrain.models.load import check_folder

    for name in models:
        if not is_remote(name):
            check_folder(name)
    read = load_changes(changes, Path.cwd(), location="--change") if changes else []
    asked = [*_changes(read, max_new_tokens), *(_task(task) for task in tasks)]
    unread = _check(models, read, tasks, offline=offline, trust_remote_code=trust_remote_code)
    times = len(models) + (1 if floor and changes else 0)
    problems: list[str] = []
    wall_s: float | None = None
    try:
        if asked:
            wall_s = _guess(models[-1], asked, times, offline=offline, trust_remote_code=trust_remote_code)
    except PosttrainError as error:
        problems.append(shown(error))
    if json:
        rows = [{"exam": one.name, "items": one.items, "requests": one.requests} for one in asked]
        emit({"models": list(models), "exams": rows, "tasks": harness, "noise_floor": floor, "wall_s": wall_s})
        return
    print_line(f"model       {models[-1]}")
    for name in models[:-1]:
        print_line(f"before      {name}")
    for one in asked:
        items = f"{one.items:,} item{'' if one.items == 1 else 's'}"
        print_line(
            f"exam        {one.name}: {items}, {one.requests:,} request{'' if one.requests == 1 else 's'} to each"
        )
    if harness:
        print_line(f"lm-eval     {harness}: counted when its data is loaded")
    if floor and changes:
        print_line("floor       the model before is asked the same in other arithmetic")
    if output:
        print_line(f"output      {output}")
    for unknown in unread:
        print_line(f"texts       not checked: {unknown}")
    if wall_s is not None:
        print_line(time_line(wall_s))
    for unknown in problems:
        print_line(f"time        not guessed: {unknown}")


def _check(models: Sequence[str], changes: Sequence[Change], tasks: Sequence[Task], **how: bool) -> list[str]:
    """The errors of asking, all at once; what is returned says of which models it is not known."""
    from posttrain.exams.change import check_change
    from posttrain.exams.running import check_task
    from posttrain.inference.opening import is_remote, read_prompts

    unread: list[str] = []
    problems: list[Problem] = []
    for name in models:
        if is_remote(name):
            continue
        try:
            reader = read_prompts(name, **how)
        except PosttrainError as error:
            unread.append(shown(error))
            continue
        checks = [partial(check_change, reader, change) for change in changes]
        for check in [*checks, *(partial(check_task, reader, name, task) for task in tasks)]:
            try:
                check()
            except PosttrainError as error:
                problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise DataError(*problems)
    return unread


def _changes(changes: Sequence[Change], max_new_tokens: int) -> list[Asked]:
    from posttrain.studies.estimate import ANSWER_TOKENS

    found = []
    for change in changes:
        probes = tuple(question.question for _, _, question in change.probes())
        written = len(probes) * min(max_new_tokens, ANSWER_TOKENS)
        found.append(Asked(change.name, len(probes), len(probes), sum(map(len, probes)), written, probes))
    return found


def _task(task: Task) -> Asked:
    from posttrain.studies.estimate import task_work

    characters, written = task_work(task)
    requests = sum(len(item.asks) for item in task.items) * (1 + len(task.perturbations))
    sample = tuple(item.question for item in task.items[:100] if item.question)
    return Asked(task.name, len(task.items), requests, characters, written, sample)


def _guess(model: str, asked: Sequence[Asked], times: int, **how: Any) -> float:
    """Seconds, from the model's configuration and how its tokenizer cuts the questions."""
    from posttrain.models.load import load_tokenizer
    from posttrain.studies.estimate import exam_s, flops_per_s, parameters_of

    offline, trust = how["offline"], how["trust_remote_code"]
    parameters = parameters_of(model, download=not offline, trust_remote_code=trust)
    tokenizer = load_tokenizer(model, offline=offline, trust_remote_code=trust)
    sample = [text for one in asked for text in one.sample][:500]
    tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False)["input_ids"]) if sample else 1
    per_character = tokens / max(sum(map(len, sample)), 1)
    speed = flops_per_s()
    return times * sum(exam_s(parameters, round(a.characters * per_character) + a.written, 1, speed) for a in asked)
