"""The exams of one model's cells: the untouched model takes every task once, each checkpoint all of them.

What a checkpoint's exams have found is kept beside its samples as soon as it is known, under the cell's content hash;
samples carry the fingerprint of the weights that gave them. So a kill loses at most one answer, and weights that were
trained again, bit by bit the same, are not asked again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.config.change import Change
from posttrain.errors import ConfigError, DataError
from posttrain.exams.capabilities import relative_changes
from posttrain.exams.change import ProbeResult, change_exam
from posttrain.exams.compare import compare
from posttrain.exams.floor import NOISE_FLOOR, Outcomes
from posttrain.exams.records import SamplesFile, exam_key
from posttrain.exams.running import TaskProgress, TaskResult, run_task
from posttrain.exams.statistics import Interval
from posttrain.exams.task import Task, content_id
from posttrain.exams.uncounted import kind_of, uncounted
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Respondent
from posttrain.inference.respondents import ModelRespondent
from posttrain.studies.bench import Bench
from posttrain.studies.config import Study, safe_name
from posttrain.studies.exams import Exams
from posttrain.studies.plan import Cell, find_model
from posttrain.studies.results import Examined, write_json
from posttrain.training.dates import keep_first_day

__all__ = ["ExamEvent", "Examiner"]


class ExamEvent(NamedTuple):
    """How far an exam is. checkpoint: `step-500`, `final`, or `before` of the untouched model; done, total: questions
    asked; left_s: expected for the rest of this exam, None where nothing is known.
    """

    model: str
    checkpoint: str
    exam: str
    done: int = 0
    total: int = 0
    left_s: float | None = None


class Examiner:
    """The exams of the cells of one model."""

    def __init__(
        self, bench: Bench, study: Study, exams: Exams, folder: Path, tell: Callable[[ExamEvent], None]
    ) -> None:
        self.bench, self.study, self.exams, self.folder, self.tell = bench, study, exams, folder, tell
        self.place = folder / "before" / safe_name(bench.name)
        self.before: dict[str, TaskResult] = {}
        self.judge: Respondent | None = None
        self.notes: Mapping[str, Sequence[str]] = {}
        """Task -> what there is to say about it, whoever takes it."""
        self.warned: set[str] = set()
        """Changes of whose `keeps` was said what is wrong with them."""

    # ---- the untouched model -----------------------------------------------------------------------------------------

    @property
    def before_key(self) -> str:
        """The same for the same untouched model and the same tasks."""
        return content_id(self.bench.fingerprint, [task.fingerprint for task in self.exams.tasks])

    def known_before(self) -> dict[str, Any] | None:
        """What an earlier run has found, when it was the same."""
        try:
            known: dict[str, Any] = json.loads((self.place / "result.json").read_text(encoding="utf-8"))
            return known if known.pop("hash") == self.before_key else None
        except (FileNotFoundError, ValueError, KeyError, AttributeError, TypeError):
            return None

    def take_before(self, *, needed: bool) -> dict[str, Any] | None:
        """The untouched model's entry in results.json; None without tasks. needed: it will be compared with."""
        if not self.exams.tasks:
            return None
        known = self.known_before()
        if known is not None and not needed:
            self.notes = dict(known["notes"])
            return known
        self.before = {
            task.name: self._task(self.bench.before, task, self.place, "before") for task in self.exams.tasks
        }
        if known is None:
            known = {
                "model": self.bench.name,
                "fingerprint": self.bench.fingerprint,
                **self._merged(self.before),
                "folder": str(self.place.relative_to(self.folder)),
                "cost": costs(self.before),
                "notes": {name: one.notes for name, one in self.before.items()},
            }
            write_json(self.place / "result.json", {"hash": self.before_key, **known})
        self.notes = dict(known["notes"])
        return known

    @property
    def scores_before(self) -> Mapping[str, float]:
        """The untouched model's scores, by key."""
        scores: Mapping[str, float] = self._merged(self.before)["scores"]
        return scores

    def headline(self, exam: str) -> str:
        """The key of an exam's main score."""
        return next(f"{task.name}.{task.headline}" for task in self.exams.tasks if task.name == exam)

    # ---- one checkpoint ----------------------------------------------------------------------------------------------

    def examine(self, cell: Cell, respondent: Respondent, checkpoint: str, step: int | None, place: Path) -> Examined:
        """Every exam of the study, on a changed model; place: the folder of the checkpoint's samples."""
        with respondent.held():
            return self._examined(cell, respondent, checkpoint, step, place)

    def _examined(self, cell: Cell, respondent: Respondent, checkpoint: str, step: int | None, place: Path) -> Examined:
        began = time.monotonic()
        scores: dict[str, float] = {}
        ci95: dict[str, Interval] = {}
        n: dict[str, int] = {}
        notes: list[str] = []
        cost: dict[str, float] = {}
        outcomes: Outcomes = {}
        if self.exams.change is not None and cell.change is not None:
            self.tell(ExamEvent(cell.model, checkpoint, self.exams.change.label))
            floor = cell.method.name == NOISE_FLOOR
            result = self._change(respondent, cell.change, checkpoint, place, floor=floor)
            scores, ci95, n, notes = dict(result.scores), dict(result.ci95), dict(result.n), list(result.notes)
            outcomes = result.outcomes
            self._warn(cell.change.name, notes)
            cost["exam_s.change"] = time.monotonic() - began
        after = {task.name: self._task(respondent, task, place, checkpoint) for task in self.exams.tasks}
        merged = self._merged(after)
        info = self.exams.info({})
        changes = relative_changes(self._merged(self.before)["scores"], {**scores, **merged["scores"]}, info)
        for name, one in after.items():
            notes += [f"{name}: {note}" for note in one.notes if note not in self.notes[name]]
        return Examined(
            checkpoint,
            {**scores, **merged["scores"]},
            {**ci95, **merged["ci95"]},
            {**n, **merged["n"]},
            str(place.relative_to(self.folder)),
            step=step,
            compare={task.name: self._compared(task, after[task.name]) for task in self.exams.tasks},
            drift=changes,
            notes=notes,
            cost={**cost, **costs(after), "exam_s": time.monotonic() - began},
            outcomes=outcomes,
        )

    def _warn(self, change: str, notes: Sequence[str]) -> None:
        """Words to keep that the untouched model does not say: a slip in the change file, said once."""
        if change not in self.warned:
            self.warned.add(change)
            for reason in dict.fromkeys(one.reason for one in uncounted(notes) if kind_of(one.reason) == "keeps"):
                self.bench.say(f"change {change}: {reason}")

    def _compared(self, task: Task, after: TaskResult) -> dict[str, Any]:
        before = self.before[task.name].samples
        better = task.higher_is_better
        return compare(before, after.samples, headline=task.headline, higher_is_better=better).to_json()

    def _merged(self, results: Mapping[str, TaskResult]) -> dict[str, dict[str, Any]]:
        """Scores, intervals and counts of several tasks, each key with its task's name before it."""
        made: dict[str, dict[str, Any]] = {"scores": {}, "ci95": {}, "n": {}}
        for name, one in results.items():
            for part, values in (("scores", one.scores), ("ci95", one.ci95), ("n", one.n)):
                made[part].update((f"{name}.{key}", value) for key, value in values.items())
        return made

    def _change(self, respondent: Respondent, change: Change, checkpoint: str, place: Path, *, floor: bool) -> Any:
        """The change exam; samples are appended as they are judged."""
        config = self.exams.change
        assert config is not None
        max_new_tokens = config.max_new_tokens or self.study.max_new_tokens
        key = exam_key(
            self.bench.before.fingerprint,
            respondent.fingerprint,
            change,
            max_new_tokens=max_new_tokens,
            mode=config.mode,
            judge=config.judge,
        )
        samples = open_samples(place / "samples.jsonl", {change.name: key})
        total = len({question.question for _, _, question in change.probes()})
        done = len(samples.done[change.name])

        def judged(sample: ProbeResult) -> None:
            nonlocal done
            done += 1
            samples.append(change.name, sample)
            self.tell(ExamEvent(self.bench.name, checkpoint, config.label, done, max(total, done)))

        return change_exam(
            self.bench.before,
            respondent,
            change,
            before_cache=self.bench.before_cache(change.name),
            on_sample=judged,
            done=samples.done[change.name],
            max_new_tokens=max_new_tokens,
            mode=config.mode,
            chunk=self.bench.chunk,
            judge=self._judge(),
            floor=floor,
        )

    def _judge(self) -> Respondent | None:
        """The judge that the change exam names, opened once."""
        assert self.exams.change is not None
        if self.judge is None and self.exams.change.judge:
            found, _ = find_model(self.exams.change.judge, self.bench.base)
            self.judge = open_respondent(found, offline=not self.bench.download)
            if isinstance(self.judge, ModelRespondent):
                keep_first_day(self.judge.tokenizer, self.folder, say=self.bench.say)
        return self.judge

    def _task(self, respondent: Respondent, task: Task, place: Path, checkpoint: str) -> TaskResult:
        """One task; samples of other weights or of other questions are thrown away."""
        path = place / "exams" / f"{safe_name(task.name)}.jsonl"
        self.tell(ExamEvent(self.bench.name, checkpoint, task.name))

        def tell(progress: TaskProgress) -> None:
            event = ExamEvent(self.bench.name, checkpoint, task.name, progress.done, progress.total, progress.left_s)
            self.tell(event)

        return run_task(respondent, task, samples_path=path, on_progress=tell, discard=True)


def costs(results: Mapping[str, TaskResult]) -> dict[str, float]:
    """`exam_s.<task>` and `exam_tokens.<task>` (forwarded and generated), and the sum of each."""
    made: dict[str, float] = {}
    for name, one in results.items():
        made[f"exam_s.{name}"] = one.cost.get("wall_s", 0.0)
        made[f"exam_tokens.{name}"] = one.cost.get("forwarded_tokens", 0.0) + one.cost.get("generated_tokens", 0.0)
    if made:
        made["exam_s"] = sum(value for key, value in made.items() if key.startswith("exam_s."))
        made["exam_tokens"] = sum(value for key, value in made.items() if key.startswith("exam_tokens."))
    return made


def open_samples(path: Path, exams: Mapping[str, str]) -> SamplesFile:
    """The samples of a change exam; those of another exam (retrained weights, an edited change) are thrown away."""
    try:
        return SamplesFile(path, exams)
    except (ConfigError, DataError):
        path.unlink()
        return SamplesFile(path, exams)
