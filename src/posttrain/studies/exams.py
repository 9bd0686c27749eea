"""The exams of a study: built before anything is loaded, so that a missing file is found before training starts.

What they ask may not be trained on: `forbidden` holds the prompts of every change and every task. A prompt that is
asked in the middle of a conversation is forbidden in that conversation only: "and then?" is nobody's question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config.change import Change
from posttrain.errors import ConfigError, MissingError, PosttrainError, Problem
from posttrain.exams.task import Ask, Item, Task, TaskConfig, build, content_id
from posttrain.exams.tasks.change import ChangeExamConfig
from posttrain.inference.protocol import Plain
from posttrain.retention.selection import conversation_key
from posttrain.studies.config import Study

__all__ = ["Exams", "prepare_exams"]


@dataclass(frozen=True)
class Exams:
    """change: the change exam, where the study has it; tasks: the others, in their order; hashes: exam -> all that it
    depends on; forbidden: prompts that no row may train.
    """

    change: ChangeExamConfig | None
    tasks: tuple[Task, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    forbidden: frozenset[str] = frozenset()

    def info(self, notes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
        """`exams` of results.json; notes: what running a task had to say."""
        return {
            task.name: {
                "headline": task.headline,
                "signature": task.whole_signature,
                "capabilities": dict(task.capabilities),
                "chance": task.chance,
                "higher_is_better": task.higher_is_better,
                "notes": list(dict.fromkeys([*task.notes, *notes.get(task.name, ())])),
            }
            for task in self.tasks
        }


def prepare_exams(study: Study, changes: Sequence[Change], base: Path, location: str = "") -> Exams:
    """Read every exam of a study. What is wrong with any of them is raised at once; location: the study's file."""
    tasks: list[Task] = []
    hashes: dict[str, str] = {}
    problems: list[Problem] = []
    missing = True
    for config in study.exams:
        settings = config.model_dump(mode="json", exclude={"name"})
        if isinstance(config, ChangeExamConfig):
            hashes[config.label] = content_id(settings)
            continue
        try:
            assert isinstance(config, TaskConfig)
            task = build(config, base)
        except PosttrainError as error:
            missing = missing and isinstance(error, MissingError)
            where = f"{location}: exam '{name_of(config)}'" if location else f"exam '{name_of(config)}'"
            problems += [p._replace(location=f"{where}: {p.location}" if p.location else where) for p in error.problems]
            continue
        tasks.append(task)
        hashes[task.name] = content_id(settings, task.fingerprint)
    staged = {stage.measured_by: stage.name for stage in study.stages}
    for task in tasks:
        if task.name in staged and not task.higher_is_better:
            cause = f"stage '{staged[task.name]}' is measured by {task.headline}, of which less is better"
            problems.append(Problem(location, cause, "transfer needs a score: give an exam of which more is better"))
            missing = False
    if problems:
        raise MissingError(*problems) if missing else ConfigError(*problems)
    return Exams(study.change_exam, tuple(tasks), hashes, frozenset(asked(study, changes, tasks)))


def name_of(config: Any) -> str:
    """The name of an exam in tables and keys."""
    return str(config.label)


def asked(study: Study, changes: Sequence[Change], tasks: Sequence[Task]) -> Iterator[str]:
    """Every prompt of every exam, those aside that the study may train on."""
    for change in changes:
        yield from (question.question for _, _, question in change.probes())
    for task in tasks:
        if task.name not in study.may_train_on:
            for item in task.items:
                for ask in item.asks:
                    yield from words_of(item, ask)


def words_of(item: Item, ask: Ask) -> Iterator[str]:
    """What a training row would ask if it asked this."""
    if isinstance(ask.prompt, str):
        yield ask.prompt
    elif not isinstance(ask.prompt, Plain):
        yield conversation_key(ask.prompt)
        if ask.prompt[-1].content.strip() == item.question.strip() and len(ask.prompt) > 1:
            return
    if item.question.strip():
        yield item.question
