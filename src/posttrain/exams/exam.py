"""An exam of any kind, ready to be taken; what it asks is known before a model is loaded.

A study and `posttrain exam` handle all kinds alike: they build every exam from its config (`build`) and give it a
`Sitting`, which says who takes it, which model it is compared with, and where the samples go.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from posttrain import registry
from posttrain.config.change import Change
from posttrain.errors import ConfigError, Problem
from posttrain.exams.exam_config import ExamConfig
from posttrain.exams.results import ExamInfo
from posttrain.exams.running import CHUNK, Cache, TaskProgress, TaskResult, run_task
from posttrain.exams.task import Item, Task, TaskConfig, draw
from posttrain.inference.protocol import Respondent
from posttrain.models.disk import safe_name

__all__ = ["Exam", "Part", "Sitting", "TaskExam", "build"]


def _no_judge(name: str) -> Respondent:
    raise ConfigError(Problem(name, "nobody is there to judge"))


@dataclass(frozen=True)
class Sitting:
    """A respondent that takes exams, and all that an exam needs to know about it.

    folder: folder of the samples; without one they are kept in memory only; before: the untouched model, for exams that
    compare; changes: what was changed; cache: change -> what `before` has replied; known: the same by exam; chunk:
    number of requests about a change at once; floor: the respondent is the noise floor; told: returns the respondent
    that knows a change, if the method puts it into the prompt; restart: delete the samples in the folder; discard:
    delete samples of another exam, which otherwise are an error; tell: called when an exam begins (None) and with its
    progress; say: called with a line for the user; open: returns a respondent by its name; done: called with the
    results when an exam (for the change exam: each change) is over.
    """

    respondent: Respondent
    folder: Path | None = None
    before: Respondent | None = None
    changes: Sequence[Change] = ()
    cache: Callable[[str], Cache] = lambda change: {}
    known: Callable[[str], Cache] = lambda exam: {}
    chunk: int = CHUNK
    floor: bool = False
    told: Callable[[Respondent, Change], Respondent] = lambda respondent, change: respondent
    restart: bool = False
    discard: bool = False
    tell: Callable[[str, TaskProgress | None], None] = lambda exam, progress: None
    say: Callable[[str], None] = lambda line: None
    open: Callable[[str], Respondent] = _no_judge
    done: Callable[[Respondent, Sequence[TaskResult[Any]]], None] = lambda respondent, found: None

    def file(self, exam: str) -> Path | None:
        """Return the file for the samples of an exam, or None without a folder."""
        return None if self.folder is None else self.folder / "exams" / f"{safe_name(exam)}.jsonl"

    def telling(self, exam: str) -> Callable[[TaskProgress], None]:
        """Report that an exam begins, and return the function that reports its progress."""
        self.tell(exam, None)
        return lambda progress: self.tell(exam, progress)


class Part(NamedTuple):
    """One exam of results.json and its items. times: how often each is asked: once, and once per perturbation."""

    info: ExamInfo
    items: Sequence[Item]
    times: int = 1


class Exam(ABC):
    """An exam. config: its settings; compares: it asks the untouched model itself and compares probe by probe."""

    config: ExamConfig
    compares: bool = False

    @property
    def name(self) -> str:
        """The exam's name in the study."""
        return self.config.label

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The exams of results.json that it consists of, usually one."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the questions, the settings and the way of judging, without what is asked about a change."""

    @abstractmethod
    def take(self, sitting: Sitting) -> list[TaskResult[Any]]:
        """Ask, judge and score; return a result for each part, or for each change in an exam of changes."""

    @abstractmethod
    def tasks(self, changes: Sequence[Change]) -> list[Task[Any]]:
        """Return the tasks that it puts to a respondent through `run_task`, for `check_task`."""


@dataclass(frozen=True)
class TaskExam(Exam):
    """An exam that is a task."""

    task: Task
    config: ExamConfig

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The task, as the only part."""
        return (Part(self.task.info, self.task.items, 1 + len(self.task.perturbations)),)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the task."""
        return self.task.fingerprint

    def take(self, sitting: Sitting) -> list[TaskResult[Any]]:
        """Ask, judge and score the task. The model before is asked only if the task has requests to it."""
        found = run_task(
            sitting.respondent,
            self.task,
            before=sitting.before if self.task.asks_before else None,
            cache=sitting.known(self.name),
            samples_path=sitting.file(self.name),
            on_progress=sitting.telling(self.name),
            restart=sitting.restart,
            discard=sitting.discard,
        )
        sitting.done(sitting.respondent, [found])
        return [found]

    def tasks(self, changes: Sequence[Change]) -> list[Task[Any]]:
        """Return the task."""
        return [self.task]


def build(config: ExamConfig, base: Path) -> Exam:
    """Return the exam that a config describes. base: folder of its relative paths. Raises the errors of the kind's
    builder.
    """
    made: Exam | Task = registry.load("exam", config.kind).function(config, base)
    if isinstance(made, Exam):
        return made
    made = replace(made, name=config.label, kind=config.kind, role=config.role)
    if isinstance(config, TaskConfig):
        items, chat = draw(made.items, config.limit, config.seed), config.template == "chat"
        made = replace(made, items=items, perturbations=config.perturbations, seed=config.seed, chat=chat)
    return TaskExam(made, config)
