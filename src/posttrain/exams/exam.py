"""An exam of any kind, ready to be taken: what it asks is known before a model is loaded.

A study and `posttrain exam` know no kinds: they build every exam from its config (`build`) and give it a `Sitting`,
which says who takes it, beside whom, and where the samples go.
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
    """A respondent that takes exams.

    folder: of the samples, which are in memory alone without one; before: the untouched model, for exams that compare;
    changes: what was changed; cache: what `before` has said, by change; chunk: so many probes of a change at once;
    floor: the respondent is the noise floor; told: the respondent, told a change where it is to be told; restart: throw
    away what is in the folder; discard: throw away what is another exam's, which is an error otherwise; tell: an exam
    begins (None) or goes on; done: an exam (of the change exam, that of a change) is over; open: a respondent by its
    name.
    """

    respondent: Respondent
    folder: Path | None = None
    before: Respondent | None = None
    changes: Sequence[Change] = ()
    cache: Callable[[str], Cache] = lambda change: {}
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
        """Where the samples of an exam go."""
        return None if self.folder is None else self.folder / "exams" / f"{safe_name(exam)}.jsonl"

    def telling(self, exam: str) -> Callable[[TaskProgress], None]:
        """`tell` for one exam, which begins."""
        self.tell(exam, None)
        return lambda progress: self.tell(exam, progress)


class Part(NamedTuple):
    """One exam of results.json, and what it asks. times: how often every question is asked: as it is, and disturbed."""

    info: ExamInfo
    items: Sequence[Item]
    times: int = 1


class Exam(ABC):
    """An exam. config: its settings; compares: it asks the untouched model by itself, and compares probe by probe."""

    config: ExamConfig
    compares: bool = False

    @property
    def name(self) -> str:
        """What the study calls it."""
        return self.config.label

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The exams of results.json that it consists of, mostly one."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The same only for the same questions, settings and ways of judging; without what is asked about a change."""

    @abstractmethod
    def take(self, sitting: Sitting) -> list[TaskResult[Any]]:
        """Ask, judge, score: a result for each part; of an exam of changes for each change."""

    @abstractmethod
    def tasks(self, changes: Sequence[Change]) -> list[Task[Any]]:
        """What it puts to a respondent in our own way, for `check_task`."""


@dataclass(frozen=True)
class TaskExam(Exam):
    """An exam that is a task."""

    task: Task
    config: ExamConfig

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The task."""
        return (Part(self.task.info, self.task.items, 1 + len(self.task.perturbations)),)

    @property
    def fingerprint(self) -> str:
        """Of the task."""
        return self.task.fingerprint

    def take(self, sitting: Sitting) -> list[TaskResult[Any]]:
        """Ask, judge, score."""
        found = run_task(
            sitting.respondent,
            self.task,
            samples_path=sitting.file(self.name),
            on_progress=sitting.telling(self.name),
            restart=sitting.restart,
            discard=sitting.discard,
        )
        sitting.done(sitting.respondent, [found])
        return [found]

    def tasks(self, changes: Sequence[Change]) -> list[Task[Any]]:
        """The task."""
        return [self.task]


def build(config: ExamConfig, base: Path) -> Exam:
    """The exam that a config describes; base: its paths are relative to it. Errors as the kind's builder has them."""
    made: Exam | Task = registry.load("exam", config.kind).function(config, base)
    if isinstance(made, Exam):
        return made
    made = replace(made, name=config.label, kind=config.kind, role=config.role)
    if isinstance(config, TaskConfig):
        items, chat = draw(made.items, config.limit, config.seed), config.template == "chat"
        made = replace(made, items=items, perturbations=config.perturbations, seed=config.seed, chat=chat)
    return TaskExam(made, config)
