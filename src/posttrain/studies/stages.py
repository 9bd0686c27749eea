"""Tasks learned one after another, all together, or each by a model of its own.

    sequential   one model goes through the stages in their order; what it has learned earlier may be forgotten
    multitask    one training on the rows of all stages: what could be reached if nothing had to be remembered
    separate     every stage starts from the untouched model: nothing is forgotten, nothing is shared

In `sequential` an adapter (LoRA and the like) stays the same adapter: it is taken up with its weights and trained on,
neither merged nor followed by a second one, so that at the end one adapter holds all stages and a penalty finds the
parameters it knows. Each stage is a run of its own (`training/<number>-<name>/`), with an optimiser of its own; the
next one is told its folder, in which penalties and replay have left what they need. Finished runs are not trained
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.data.chat import Encoded
from posttrain.data.records import Completion, Conversation, Record, Text
from posttrain.errors import DataError
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.retention.selection import ReplayConfig, Task
from posttrain.studies.candidates import END, Candidate, CellContext, Point
from posttrain.studies.config import StageConfig, safe_name
from posttrain.studies.train_config import TrainMethodConfig, settings_of
from posttrain.studies.train_rows import colliding, encoded_rows, rows_of
from posttrain.studies.train_steps import Steps, blends
from posttrain.training.config import TrainConfig
from posttrain.training.environment import stay_at_first_day
from posttrain.training.folder import RunFolder, TrainResult, finished_run
from posttrain.training.rows import longest_row
from posttrain.training.run import train as run_training
from posttrain.training.trackers import LOGS

__all__ = ["Part", "parts_of", "train_stages"]


class Part(NamedTuple):
    """One training: of a stage, or of all of them. name: of its folder; point: where its model stands."""

    name: str
    stages: tuple[StageConfig, ...]
    point: Point


def parts_of(how: str, stages: Sequence[StageConfig]) -> list[Part]:
    """The trainings of a cell, in order."""
    if how == "multitask":
        return [Part("all", tuple(stages), END)]
    last = stages[-1]
    return [
        Part(f"{i}-{safe_name(s.name)}", (s,), END if s is last and how == "sequential" else Point("stage", s.name))
        for i, s in enumerate(stages, start=1)
    ]


def train_stages(config: TrainMethodConfig, cell: CellContext) -> Iterator[Candidate]:
    """A candidate after every stage and at the end; where each stage has a model of its own, there is none at the end
    (`respondent` is None).
    """
    return _Course(config, cell).run()


class _Course:
    def __init__(self, config: TrainMethodConfig, cell: CellContext) -> None:
        self.config, self.cell = config, cell
        self.root = cell.folder / "training"
        self.parts = parts_of(config.stages, cell.stages)
        self.notes: list[str] = []
        self.results: list[dict[str, Any]] = []
        self.model: LoadedModel | None = None  # of the part before, where it is in memory

    def run(self) -> Iterator[Candidate]:
        for number, part in enumerate(self.parts):
            self._learn(number, part)
            if part.point != END and self.model is not None:
                named = self.model._replace(name=self.cell.name(part.point))
                yield Candidate(part.point, ModelRespondent(named))
        assert self.model is not None
        own = self.config.stages == "separate"
        keep, last = self.cell.keep, self.root / self.parts[-1].name
        kept = [part.name for part in self.parts] if keep == "all" or own else [self.parts[-1].name]
        scratch = [self.root] if keep == "none" else []
        if keep != "none":
            scratch = [self.root / part.name for part in self.parts if part.name not in kept]
            scratch += [self.root / name / "checkpoints" for name in kept]
        yield Candidate(
            END,
            None if own else ModelRespondent(self.model._replace(name=self.cell.name())),
            step=None if own else sum(int(one["steps"]) for one in self.results),
            cost=self._cost(),
            product=(self.root if own else last / "model") if keep != "none" else None,
            notes=self.notes,
            scratch=scratch,
        )
        yield from blends(self.config.merge_back, self.cell, self.model.model)

    def _cost(self) -> dict[str, float]:
        """Sums over the parts; peaks are maxima."""
        return {
            "train_s": sum(one["wall_s"] for one in self.results),
            "steps": float(sum(one["steps"] for one in self.results)),
            "tokens": float(sum(one["tokens"] for one in self.results)),
            "peak_gib": max(one["peak_gib"] for one in self.results),
            "moved": float(max(one["moved"][0] for one in self.results)),
            "moved_share": max(one["moved"][0] / max(one["moved"][1], 1) for one in self.results),
        }

    def _learn(self, number: int, part: Part) -> None:
        """Train a part; what is done is read."""
        output = self.root / part.name
        later = [self.root / other.name for other in self.parts[number + 1 :]]
        examined = part.point == END or self.cell.examined(part.point)
        done = RunFolder(output).result_in()
        last = number + 1 == len(self.parts)
        if done is not None and examined and any(RunFolder(one).result_in() for one in later) and not last:
            self.model = None  # neither it nor its exams are needed any more
            self.results.append(done)
            return
        made = finished_run(output, self.cell.bench.load) if done is not None else None
        if made is None:
            made = self._trained(number, part, output)
        self.model = LoadedModel(made.model, made.tokenizer, str(output / "model"))
        self.results.append(made._asdict())

    def _start(self, number: int) -> tuple[LoadedModel, Path | None]:
        """The model that a part starts from, and the adapter that it takes up."""
        if number == 0 or self.config.stages != "sequential":
            return self.cell.bench.working(), None
        before = self.root / self.parts[number - 1].name / "model"
        if (before / "adapter_config.json").is_file():
            return self.cell.bench.working(), before
        return self.model or self.cell.bench.load(before), None

    def _trained(self, number: int, part: Part, output: Path) -> TrainResult:
        config, cell = self.config, self.cell
        before = sum(int(one["steps"]) for one in self.results)
        steps = Steps(cell, self.notes, before=before, stage=part.name)
        loaded, adapter = self._start(number)
        for tokenizer in (loaded.tokenizer, cell.before.tokenizer):  # the second one reads what is replayed
            stay_at_first_day(tokenizer, output, resume=True, say=steps.say)
        settings = settings_of(config, cell, loaded.name)
        records, task = _records(part, cell), self._task(number)
        max_length = longest_row(settings, loaded.model)
        rows = encoded_rows(settings.objective, records, loaded.tokenizer, max_length)
        talks = _conversations(records)
        if isinstance(config.replay, ReplayConfig):
            beside = config.replay.lessons(talks, task)
            rows += encoded_rows(settings.objective, beside, loaded.tokenizer, max_length) if beside else []
        old = self._replay(settings, loaded, adapter, max_length, task)
        return run_training(
            settings,
            loaded=loaded,
            rows=rows,
            replay_rows=old,
            output=output,
            progress=steps,
            base=cell.base,
            earlier=task.earlier,
            adapter=adapter,
            forbidden=cell.forbidden,
            logs=cell.folder / LOGS / part.name,
        )

    def _task(self, number: int) -> Task:
        """What a part is for its replay; what the parts before it have to leave is left."""
        part = self.parts[number]
        rows = _records(part, self.cell)
        earlier = self.root / self.parts[number - 1].name if number and self.config.stages == "sequential" else None
        if earlier is not None and isinstance(self.config.replay, ReplayConfig):
            before = self._task(number - 1)
            talks = _conversations(_records(self.parts[number - 1], self.cell))
            self.config.replay.leave(talks, before, self.cell.seed)
        return Task(" + ".join(stage.name for stage in part.stages), len(rows), earlier, self.root / part.name)

    def _replay(
        self, settings: TrainConfig, loaded: LoadedModel, adapter: Path | None, max_length: int, task: Task
    ) -> list[Encoded]:
        """The replay's rows as the model makes them that a part starts from."""
        config, cell = self.config, self.cell
        if not isinstance(config.replay, ReplayConfig):
            return []
        if task.earlier is None and not config.replay.of_tasks:
            return cell.bench.replay(config.replay, cell.seed, max_length)
        start = loaded if adapter is None else cell.bench.load(adapter)
        return cell.bench.rehearse(config.replay, start, cell.seed, max_length, task, self.notes.append)


def _records(part: Part, cell: CellContext) -> list[Record]:
    """The rows of a part's stages. DataError where one of them asks what an exam of the study asks."""
    asked = [p for stage in part.stages for p in colliding(stage.source(cell.base), cell.forbidden)]
    if asked:
        raise DataError(*asked)
    return [record for stage in part.stages for record in rows_of(stage.source(cell.base))]


def _conversations(records: Sequence[Record]) -> list[Conversation]:
    """What of the rows can be replayed as a conversation."""
    talks = [r.as_conversation() if isinstance(r, Completion) else r for r in records if not isinstance(r, Text)]
    return [talk for talk in talks if isinstance(talk, Conversation)]
