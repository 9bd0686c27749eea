"""The exams of a study. They are built before a model is loaded, so that a missing file is found before training.

Their questions may not be trained on: `forbidden` holds the prompts of every change and every exam. A prompt in the
middle of a conversation is forbidden in that conversation only, because "and then?" alone is too general.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.config.change import Change
from posttrain.errors import ConfigError, MissingError, PosttrainError, Problem
from posttrain.exams.exam import Exam, Part, build
from posttrain.exams.results import ExamInfo
from posttrain.exams.task import Ask, Item, content_id
from posttrain.exams.tasks.change import ChangeExamConfig
from posttrain.exams.tasks.lm_eval import LmEvalConfig, go_offline
from posttrain.inference.protocol import Plain
from posttrain.models.disk import safe_name
from posttrain.retention.selection import conversation_key
from posttrain.studies.config import Study

__all__ = ["Exams", "check_names", "prepare_exams"]


@dataclass(frozen=True)
class Exams:
    """The exams of a study. exams: in their order; hashes: exam -> hash of everything that it depends on; forbidden:
    prompts that no training row may hold.
    """

    exams: tuple[Exam, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    forbidden: frozenset[str] = frozenset()

    @property
    def paired(self) -> tuple[Exam, ...]:
        """The exams that the untouched model takes by itself, compared sample by sample: all but the change exam."""
        return tuple(exam for exam in self.exams if not exam.compares)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the paired exams."""
        return tuple(part for exam in self.paired for part in exam.parts)

    def info(self, notes: Mapping[str, Sequence[str]]) -> dict[str, ExamInfo]:
        """Return the field `exams` of results.json. notes: exam -> notes that were made when it was taken."""
        found = {}
        for exam in self.exams:
            for info, *_ in exam.parts:
                told = tuple(dict.fromkeys([*info.notes, *notes.get(info.name, ())]))
                found[info.name] = info.model_copy(update={"notes": told})
        return found


def prepare_exams(study: Study, changes: Sequence[Change], base: Path, location: str = "") -> Exams:
    """Build every exam of a study, and raise the problems of all of them together. location: the study's file. Raise
    MissingError if only files or packages are missing, otherwise ConfigError.
    """
    exams: list[Exam] = []
    hashes: dict[str, str] = {}
    problems: list[Problem] = []
    missing = True
    if any(isinstance(config, LmEvalConfig) for config in study.exams):
        go_offline(download=study.download)
    for config in study.exams:
        if isinstance(config, ChangeExamConfig) and config.max_new_tokens is None:
            config = config.model_copy(update={"max_new_tokens": study.max_new_tokens})
        try:
            exam = build(config, base)
        except PosttrainError as error:
            missing = missing and isinstance(error, MissingError)
            where = f"{location}: exam '{config.label}'" if location else f"exam '{config.label}'"
            problems += [p._replace(location=f"{where}: {p.location}" if p.location else where) for p in error.problems]
            continue
        exams.append(exam)
        hashes[exam.name] = content_id(config.model_dump(mode="json", exclude={"name", "role"}), exam.fingerprint)
    prepared = Exams(tuple(exams), hashes, frozenset(asked(study, changes, exams)))
    staged = {stage.measured_by: stage.name for stage in study.stages}
    for info, *_ in prepared.parts:
        if info.name in staged and not info.higher_is_better:
            cause = f"stage '{staged[info.name]}' is measured by {info.headline}, of which less is better"
            problems.append(Problem(location, cause, "transfer needs a score: give an exam of which more is better"))
            missing = False
    if problems:
        raise MissingError(*problems) if missing else ConfigError(*problems)
    check_names(exams, location)
    return prepared


def check_names(exams: Sequence[Exam], location: str) -> None:
    """Raise ConfigError if two exams have the same name, because their samples would share a file."""
    names = Counter(safe_name(part.info.name) for exam in exams for part in exam.parts)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        cause = f"several exams are called {', '.join(twice)}"
        raise ConfigError(Problem(location, cause, "give each a `name` of its own in the YAML"))


def asked(study: Study, changes: Sequence[Change], exams: Sequence[Exam]) -> Iterator[str]:
    """Yield every prompt of every exam, without the exams that the study may train on."""
    for change in changes:
        yield from (question.question for _, _, question in change.probes())
    for exam in exams:
        if exam.name not in study.may_train_on:
            for part in exam.parts:
                for item in part.items:
                    for ask in item.asks:
                        yield from words_of(item, ask)


def words_of(item: Item, ask: Ask) -> Iterator[str]:
    """Yield the texts by which a training row that asks the same question is recognised. A plain prompt that does not
    have the item's question is a question of its own, such as a paraphrase.
    """
    if isinstance(ask.prompt, str):
        yield ask.prompt
    elif isinstance(ask.prompt, Plain):
        if ask.prompt.text.strip() and item.question.strip() not in ask.prompt.text:
            yield ask.prompt.text
    else:
        yield conversation_key(ask.prompt)
        if ask.prompt[-1].content.strip() == item.question.strip() and len(ask.prompt) > 1:
            return
    if item.question.strip():
        yield item.question
