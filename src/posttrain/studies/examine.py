"""The exams of one model's cells: the untouched model takes them once, and each candidate takes all of them.

The results of a point's exams are written beside its samples as soon as they are known (`cell.py`). Samples carry the
fingerprint of the weights that gave them. So a kill loses at most one answer, and if weights are trained again and are
the same bit by bit, they are not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.config.change import Change
from posttrain.exams.capabilities import relative_changes
from posttrain.exams.compare import Comparison, compare
from posttrain.exams.exam import Exam, Sitting
from posttrain.exams.results import Examined, Untouched, read_part, write_part
from posttrain.exams.running import TaskProgress, TaskResult
from posttrain.exams.scores import kind_of, uncounted
from posttrain.exams.task import content_id
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Respondent
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.disk import safe_name
from posttrain.studies.bench import Bench
from posttrain.studies.config import find_model
from posttrain.studies.events import ExamEvent
from posttrain.studies.exams import Exams
from posttrain.training.environment import keep_first_day

__all__ = ["Examiner", "summed"]


class Examiner:
    """Examines a model and its candidates, and compares them.

    sitting: how the exams are taken, with the untouched model as `before` and the run's folder; tell: takes the
    progress of exams; name: the model's name, by default that of the untouched respondent.
    """

    def __init__(self, exams: Exams, sitting: Sitting, tell: Callable[[ExamEvent], None], name: str = "") -> None:
        self.exams, self.sitting, self.tell = exams, sitting, tell
        self.untouched, self.folder = sitting.before, sitting.folder
        self.name = name or (self.untouched.name if self.untouched is not None else "")
        self.before: dict[str, TaskResult[Any]] = {}
        self.notes: Mapping[str, Sequence[str]] = {}
        """Exam -> notes about it that hold for every model that takes it."""
        self.warned: set[str] = set()
        """Names of changes with a faulty `keeps` that the user has already been warned about."""

    @classmethod
    def of(cls, bench: Bench, exams: Exams, folder: Path, tell: Callable[[ExamEvent], None]) -> Examiner:
        """Return the examiner of the cells of a study's model. It deletes samples of other weights or questions.
        folder: the run's folder; tell: takes the progress of exams.
        """

        @cache
        def judge(name: str) -> Respondent:
            one = open_respondent(find_model(name, bench.base)[0], offline=bench.how["offline"])
            if isinstance(one, ModelRespondent):
                keep_first_day(one.tokenizer, folder, say=bench.say)
            return one

        sitting = Sitting(bench.before, folder, bench.before, discard=True, say=bench.say, open=judge)
        sitting = replace(sitting, cache=bench.before_cache, known=bench.exam_cache, chunk=bench.chunk)
        return cls(exams, sitting, tell, bench.name)

    # ---- the untouched model -----------------------------------------------------------------------------------------

    def take_before(self, *, needed: bool) -> Untouched | None:
        """Examine the untouched model and return its entry in results.json; None if it takes no exam by itself. needed:
        candidates will be compared with it, so its samples are needed even if its entry is known already.
        """
        exams = self.exams.paired
        if not exams or self.untouched is None:
            return None
        key = content_id(self.untouched.fingerprint, [exam.fingerprint for exam in exams])
        folder = None if self.folder is None else self.folder / "before" / safe_name(self.name)
        known = None if folder is None else read_part(folder / "result.json", Untouched)
        known = known if known is not None and known.key == key else None
        if known is None or needed:
            found = self.take((), self.untouched, "before", folder, exams=exams)
            self.before = {one.info.name: one for one in found}
        if known is None and self.before:  # empty in every process of torchrun but the first
            known = Untouched(
                model=self.name,
                fingerprint=self.untouched.fingerprint,
                **_merged(found),
                folder=self._relative(folder),
                cost=costs(found),
                notes={name: tuple(one.notes) for name, one in self.before.items()},
                key=key,
            )
            if folder is not None:
                write_part(folder / "result.json", known)
        self.notes = {} if known is None else known.notes
        return known

    @property
    def scores_before(self) -> Mapping[str, float]:
        """The untouched model's scores, by key."""
        scores: Mapping[str, float] = _merged(list(self.before.values()))["scores"]
        return scores

    def headline(self, exam: str) -> str:
        """Return the key of an exam's main score."""
        return self.exams.info({})[exam].key

    # ---- one candidate -----------------------------------------------------------------------------------------------

    def take(
        self,
        changes: Sequence[Change],
        respondent: Respondent,
        checkpoint: str,
        folder: Path | None,
        *,
        floor: bool = False,
        exams: Sequence[Exam] | None = None,
    ) -> list[TaskResult[Any]]:
        """Let a respondent take the exams and return their results.

        changes: those that it has learned; checkpoint: the point's name, or `before`; folder: the folder of the
        samples; floor: the respondent is the noise floor; exams: only these exams, all of them if None.
        """
        model = self.name if checkpoint == "before" else respondent.name

        def tell(exam: str, progress: TaskProgress | None) -> None:
            event = ExamEvent(model, checkpoint, exam)
            if progress is not None:
                done, total, wall_s, tokens, left_s = astuple(progress)
                event = ExamEvent(model, checkpoint, exam, done, total, left_s, tokens / max(wall_s, 1e-9))
            self.tell(event)

        sitting = replace(self.sitting, respondent=respondent, folder=folder, tell=tell, changes=changes, floor=floor)
        with respondent.held():
            return [one for exam in (self.exams.exams if exams is None else exams) for one in exam.take(sitting)]

    def select(self, respondent: Respondent, folder: Path | None) -> Mapping[str, float]:
        """Return the main scores of the exams with `role: select`, by key; negated if a smaller score is better."""
        exams = [exam for exam in self.exams.paired if exam.config.role == "select"]
        taken = self.take((), respondent, "select", folder, exams=exams)
        found = [one for one in taken if one.info.headline in one.scores]
        sign = {one.info.key: 1.0 if one.info.higher_is_better else -1.0 for one in found}
        return {one.info.key: sign[one.info.key] * one.scores[one.info.headline] for one in found}

    def examined(
        self,
        found: Sequence[TaskResult[Any]],
        changes: Sequence[Change],
        checkpoint: str,
        step: int | None,
        folder: Path | None,
    ) -> tuple[Examined, ...]:
        """Return the results of exams as entries of results.json.

        There is one entry per change, and the first one also has the other exams' scores. Without a change exam there
        is one entry. step: the optimiser step of the point, or None; folder: the folder of the samples.
        """
        names = list(dict.fromkeys(one.change for one in found if one.change))
        names = names or [changes[0].name if len(changes) == 1 else ""]
        infos, before = self.exams.info({}), self.scores_before
        made = []

        def compared(one: TaskResult[Any]) -> Comparison:
            was, info = self.before[one.info.name].samples, one.info
            return compare(was, one.samples, headline=info.headline, higher_is_better=info.higher_is_better)

        for name in names:
            own = [one for one in found if one.change == name or (not one.change and name == names[0])]
            merged = _merged(own)
            entry = Examined(
                checkpoint=checkpoint,
                change=name,
                step=step,
                **merged,
                folder=self._relative(folder),
                compare={one.info.name: compared(one) for one in own if one.samples and one.info.name in self.before},
                drift=relative_changes(before, merged["scores"], infos),
                notes=tuple(note for one in own for note in self._notes(one)),
                cost={"exam_s": 0.0, **costs(own)},
                outcomes={key: kept for one in own for key, kept in one.outcomes.items()},
            )
            self._warn(name, entry.notes)
            made.append(entry)
        return tuple(made)

    def _notes(self, found: TaskResult[Any]) -> list[str]:
        """Return the notes about a result, without those that hold for the untouched model too."""
        if found.change:
            return found.notes
        known, name = self.notes.get(found.info.name, ()), found.info.name
        return [f"{name}: {note}" for note in found.notes if note not in known]

    def _warn(self, change: str, notes: Sequence[str]) -> None:
        """Warn once per change if the untouched model does not say words of `keeps`: the change file is wrong then."""
        if change not in self.warned:
            self.warned.add(change)
            for reason in dict.fromkeys(one.reason for one in uncounted(notes) if kind_of(one.reason) == "keeps"):
                self.sitting.say(f"change {change}: {reason}")

    def _relative(self, folder: Path | None) -> str:
        return "" if folder is None or self.folder is None else str(folder.relative_to(self.folder))


def _merged(found: Sequence[TaskResult[Any]]) -> dict[str, Any]:
    """Return the scores, intervals and counts of several exams; each key starts with its exam's prefix."""
    made: dict[str, dict[str, Any]] = {"scores": {}, "ci95": {}, "n": {}}
    for one in found:
        for part, values in (("scores", one.scores), ("ci95", one.ci95), ("n", one.n)):
            made[part].update((f"{one.info.prefix}{key}", value) for key, value in values.items())
    return made


def summed(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of each cost; for the keys `peak...` and `moved...`, the largest value instead of the sum."""
    keys = dict.fromkeys(key for cost in costs for key in cost)
    return {
        key: (max if key.startswith(("peak", "moved")) else sum)(cost[key] for cost in costs if key in cost)
        for key in keys
    }


def costs(found: Sequence[TaskResult[Any]]) -> dict[str, float]:
    """Return `exam_s.<name>` (seconds) and `exam_tokens.<name>` (forwarded and generated), and the sums of both."""
    made: dict[str, float] = {}
    for one in found:
        made[f"exam_s.{one.info.name}"] = one.cost.get("wall_s", 0.0)
        tokens = one.cost.get("forwarded_tokens", 0.0) + one.cost.get("generated_tokens", 0.0)
        made[f"exam_tokens.{one.info.name}"] = tokens
    for part in ("exam_s", "exam_tokens") if made else ():
        made[part] = sum(value for key, value in made.items() if key.startswith(f"{part}."))
    return made
