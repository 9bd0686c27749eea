"""Train the model on the change's targets, alone or with other rows and replay beside them.

The new rows are the prompts and answers of all targets, and the rows of `data` if it is given. A step of a chain, and a
method with `start`, learns its `data` alone: the targets would be taught again. The exam measures what training does to
everything else; `replay` protects it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.data.records import Record
from posttrain.errors import ConfigError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.registry import register
from posttrain.retention.selection import ReplayConfig
from posttrain.studies.candidates import END, Candidate, CellContext, Point, handed_over
from posttrain.studies.merge_back import blends
from posttrain.studies.stages import train_stages
from posttrain.studies.train_config import TrainMethodConfig, leaves_weights, settings_of
from posttrain.studies.train_rows import Steps, allowed_rows, cost_of, encoded_rows, silent_about, target_records
from posttrain.training.checkpoints import checkpoints_in
from posttrain.training.environment import stay_at_first_day
from posttrain.training.folder import RunFolder, TrainResult, finished_run
from posttrain.training.rows import longest_row
from posttrain.training.run import train as run_training
from posttrain.training.trackers import LOGS

__all__ = ["extra_rows", "train"]


@register("method", "train", config=TrainMethodConfig)
def train(config: TrainMethodConfig, cell: CellContext) -> Iterator[Candidate]:
    """Train a copy of the model, or all stages of the study if it has stages.

    Yield a candidate after every step that should be examined, at the end, and at the weights between before and after
    that `merge_back` names.
    """
    config = _of_change(config, cell)
    if cell.stages:
        yield from train_stages(config, cell)
        return
    wanted = cell.resumable or cell.keep != "none" or cell.saves
    output = cell.folder / "training" if wanted else None
    resume = output is None or (yield from _caught_up(output, cell))
    done = finished_run(output, cell.bench.load) if output is not None and resume else None
    notes: list[str] = []
    if done is None:
        loaded = (cell.bench.lent if leaves_weights(config.tuner) else cell.bench.working)()
        done = yield from handed_over(
            lambda give: _trained(config, cell, loaded, output, notes, resume=resume, give=give)
        )
    scratch: list[Path] = []
    if output is not None and cell.keep != "all":
        scratch = [output / "checkpoints"] if cell.keep == "final" else [output]
    yield Candidate(
        END,
        ModelRespondent(LoadedModel(done.model, done.tokenizer, cell.name())),
        step=done.steps,
        cost=cost_of([done._asdict()]),
        product=output / "model" if output is not None and cell.keep != "none" else None,
        notes=notes,
        scratch=scratch,
        passed=Point("step", done.steps),
    )
    yield from blends(config.merge_back, cell, done.model)


def _of_change(config: TrainMethodConfig, cell: CellContext) -> TrainMethodConfig:
    """Return the settings with the change's name filled in. Raise ConfigError if the replay has a file per change and
    the cell has several changes."""
    if not isinstance(config.replay, ReplayConfig) or not cell.changes:
        return config
    filled = [config.replay.for_change(change.name) for change in cell.changes]
    if any(other != filled[0] for other in filled):
        cause = "the replay has a file per change, and one model is taught several"
        raise ConfigError(Problem(f"method '{config.label}'", cause, "give one file, without {change}"))
    return config.model_copy(update={"replay": filled[0]})


def extra_rows(config: TrainMethodConfig, cell: CellContext) -> list[Record]:
    """Return the rows of `data`. Raise DataError if a row asks what an exam of the study asks."""
    return allowed_rows(
        config.sources([change.name for change in cell.changes] or [""], cell.bench.base), cell.bench.forbidden
    )


def _caught_up(output: Path, cell: CellContext) -> Generator[Candidate, None, bool]:
    """Yield the candidates that an earlier run has saved but not examined; return whether training can be resumed. It
    must start anew (False) if a step that should be examined has been passed and its checkpoint no longer exists."""
    saved = checkpoints_in(output / "checkpoints")
    finished = RunFolder(output).result_in()
    newest = int(finished["steps"]) if finished else max(saved, default=0)
    due = [step for step in cell.saves.due(newest) if not (finished and step == newest and step not in saved)]
    missing = [step for step in due if not cell.examined(Point("step", step))]
    gone = [s for s in missing if s not in saved]
    if gone:
        cell.bench.say(f"the checkpoint of step {gone[0]} is to be examined and is gone: training begins anew")
        return False
    for step in missing:
        yield _at_step(cell, cell.bench.load(saved[step]), step)
    return True


def _at_step(cell: CellContext, loaded: LoadedModel, step: int) -> Candidate:
    point = Point("step", step)
    return Candidate(point, ModelRespondent(loaded._replace(name=cell.name(point))), step=step)


def _trained(
    config: TrainMethodConfig,
    cell: CellContext,
    loaded: LoadedModel,
    output: Path | None,
    notes: list[str],
    *,
    resume: bool,
    give: Callable[[Candidate], None],
) -> TrainResult:
    """Train the working copy and return the result. give: takes each candidate in the middle of training."""
    settings = settings_of(config, cell, loaded.name)
    steps = Steps(cell, notes)
    stay_at_first_day(loaded.tokenizer, output, resume=resume, say=steps.say)
    taught = cell.changes if config.learns_targets else ()
    records = target_records(settings.objective, taught, cell.bench.before, steps.say)
    records = [*records, *extra_rows(config, cell)]
    max_length = longest_row(settings, loaded.model)
    rows = encoded_rows(settings.objective, records, loaded.tokenizer, max_length)
    old = cell.bench.replay(config.replay, cell.seed, max_length) if config.replay is not None else []
    old = silent_about(cell.changes, old, loaded.tokenizer, steps.say)

    def examine(model: PreTrainedModel | PeftModel, step: int) -> None:
        if not cell.examined(Point("step", step)):
            give(_at_step(cell, loaded._replace(model=model), step))

    trained = run_training(
        settings,
        loaded=loaded,
        rows=rows,
        replay_rows=old,
        output=output,
        resume=resume,
        progress=steps,
        examine=examine,
        base=cell.bench.base,
        forbidden=cell.bench.forbidden,
        before=cell.bench.before.model,
        logs=cell.folder / LOGS,
    )
    late = [step for step in cell.saves.at if step > trained.steps]
    if late:
        notes.append(f"steps {', '.join(map(str, late))} were not reached: training ended after {trained.steps}")
    return trained
