"""Train the stages of a study: one after another, all together, or each with a model of its own.

    sequential   one model learns the stages in their order; it may forget what it has learned earlier
    multitask    one training on the rows of all stages: the result that is possible if nothing can be forgotten
    separate     every stage starts from the untouched model: nothing is forgotten, nothing is shared

In `sequential`, an adapter (LoRA and similar tuners) stays the same adapter. It is loaded with its weights and trained
further. It is not merged, and no second adapter is added, so that at the end one adapter holds all stages and a penalty
finds the parameters it knows. Each stage is a run of its own (`training/<number>-<name>/`) with an optimiser of its
own. The next run gets the folder of the previous one, where penalties and replay have left what they need. Finished
runs are not trained again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.data.chat import Encoded
from posttrain.data.records import Record
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.retention.selection import ReplayConfig, Task, conversations_in
from posttrain.studies.candidates import END, Candidate, CellContext, Point
from posttrain.studies.config import StageConfig, safe_name
from posttrain.studies.merge_back import blends
from posttrain.studies.train_config import TrainMethodConfig, settings_of
from posttrain.studies.train_rows import Steps, allowed_rows, cost_of, encoded_rows
from posttrain.training.environment import stay_at_first_day
from posttrain.training.folder import RunFolder, TrainResult, finished_run
from posttrain.training.rows import longest_row
from posttrain.training.run import train as run_training
from posttrain.training.trackers import LOGS

__all__ = ["Part", "parts_of", "train_stages"]


class Part(NamedTuple):
    """One training, of one stage or of all stages. name: the name of its folder; point: the point of its model."""

    name: str
    stages: tuple[StageConfig, ...]
    point: Point


def parts_of(how: str, stages: Sequence[StageConfig]) -> list[Part]:
    """Return the trainings of a cell, in order. how: `sequential`, `multitask` or `separate`."""
    if how == "multitask":
        return [Part("all", tuple(stages), END)]
    last = stages[-1]
    return [
        Part(f"{i}-{safe_name(s.name)}", (s,), END if s is last and how == "sequential" else Point("stage", s.name))
        for i, s in enumerate(stages, start=1)
    ]


def train_stages(config: TrainMethodConfig, cell: CellContext) -> Iterator[Candidate]:
    """Train the stages and yield a candidate after every stage and at the end, then those of `merge_back`. If each
    stage has a model of its own, the candidate at the end has no model (`respondent` is None).
    """
    return _Course(config, cell).run()


class _Course:
    def __init__(self, config: TrainMethodConfig, cell: CellContext) -> None:
        self.config, self.cell = config, cell
        self.root = cell.folder / "training"
        self.parts = parts_of(config.stages, cell.stages)
        self.notes: list[str] = []
        self.results: list[dict[str, Any]] = []
        self.model: LoadedModel | None = None  # of the previous part, if it is in memory

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
            cost=cost_of(self.results),
            product=(self.root if own else last / "model") if keep != "none" else None,
            notes=self.notes,
            scratch=scratch,
        )
        yield from blends(self.config.merge_back, self.cell, self.model.model)

    def _learn(self, number: int, part: Part) -> None:
        """Train a part, or load its result if an earlier run has finished it."""
        output = self.root / part.name
        later = [self.root / other.name for other in self.parts[number + 1 :]]
        examined = part.point == END or self.cell.examined(part.point)
        done = RunFolder(output).result_in()
        if done is not None and examined and any(RunFolder(one).result_in() for one in later):
            self.model = None  # the model and its exams are no longer needed
            self.results.append(done)
            return
        made = finished_run(output, self.cell.bench.load) if done is not None else None
        if made is None:
            made = self._trained(number, part, output)
        self.model = LoadedModel(made.model, made.tokenizer, str(output / "model"))
        self.results.append(made._asdict())

    def _start(self, number: int) -> tuple[LoadedModel, Path | None]:
        """Return the model that a part starts from, and the folder of the adapter that it trains further, or None."""
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
        for tokenizer in (loaded.tokenizer, cell.bench.before.tokenizer):  # the second one encodes the replayed rows
            stay_at_first_day(tokenizer, output, resume=True, say=steps.say)
        settings = settings_of(config, cell, loaded.name)
        records, task = _records(part, cell), self._task(number)
        max_length = longest_row(settings, loaded.model)
        rows = encoded_rows(settings.objective, records, loaded.tokenizer, max_length)
        if isinstance(config.replay, ReplayConfig):
            beside = config.replay.lessons(conversations_in(records)[0], task)
            rows += encoded_rows(settings.objective, beside, loaded.tokenizer, max_length) if beside else []
        old = self._replay(loaded, adapter, max_length, task)
        return run_training(
            settings,
            loaded=loaded,
            rows=rows,
            replay_rows=old,
            output=output,
            progress=steps,
            base=cell.bench.base,
            earlier=task.earlier,
            adapter=adapter,
            forbidden=cell.bench.forbidden,
            logs=cell.folder / LOGS / part.name,
        )

    def _task(self, number: int) -> Task:
        """Return the task of a part for its replay. First let the replay save what it needs of the previous part."""
        part = self.parts[number]
        rows = _records(part, self.cell)
        earlier = self.root / self.parts[number - 1].name if number and self.config.stages == "sequential" else None
        if earlier is not None and isinstance(self.config.replay, ReplayConfig):
            talks, _ = conversations_in(_records(self.parts[number - 1], self.cell))
            self.config.replay.leave(talks, self._task(number - 1), self.cell.seed)
        return Task(" + ".join(stage.name for stage in part.stages), len(rows), earlier, self.root / part.name)

    def _replay(self, loaded: LoadedModel, adapter: Path | None, max_length: int, task: Task) -> list[Encoded]:
        """Return the replay's rows, made by the model that a part starts from."""
        config, cell = self.config, self.cell
        if not isinstance(config.replay, ReplayConfig):
            return []
        if task.earlier is None and not config.replay.of_tasks:
            return cell.bench.replay(config.replay, cell.seed, max_length)
        start = loaded if adapter is None else cell.bench.load(adapter)
        return cell.bench.rehearse(config.replay, start, cell.seed, max_length, task, self.notes.append)


def _records(part: Part, cell: CellContext) -> list[Record]:
    """Return the rows of a part's stages. Raise DataError if a row asks what an exam of the study asks."""
    return allowed_rows([stage.data.at(cell.bench.base) for stage in part.stages], cell.bench.forbidden)
