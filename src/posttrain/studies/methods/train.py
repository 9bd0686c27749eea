"""Train the model on the change's targets, alone or with other rows and replay beside them.

The new rows are the targets' prompts and answers (all of them), and the rows of `data` where given. What training does
to everything else is what the exam is for; `replay` is what holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from peft import PeftModel
from pydantic import Field, field_validator, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.config.base import ByKind, Config
from posttrain.config.change import Change
from posttrain.data.chat import Encoded
from posttrain.data.lengths import with_mends
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Conversation, Message, Record, talk_of
from posttrain.errors import DataError, Problem
from posttrain.inference.places import placed
from posttrain.inference.protocol import Prompt
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.models.meter import Doing, listener
from posttrain.registry import register
from posttrain.retention.penalty._base import PenaltyConfig
from posttrain.retention.selection import ReplayConfig, only_change_in_braces, prompts_collide
from posttrain.studies.config import MethodConfig, StageConfig, Work
from posttrain.studies.context import MethodContext, MethodResult
from posttrain.studies.merge_back import BESIDE, MergeBack, merge_name
from posttrain.training.checkpoints import checkpoints_in
from posttrain.training.config import (
    Arithmetic,
    BatchConfig,
    OptimizerConfig,
    PenaltiesOf,
    SaveDtype,
    TrainConfig,
    check_recomputable,
    each_kind_once,
)
from posttrain.training.dates import stay_at_first_day
from posttrain.training.folder import RunFolder
from posttrain.training.forms import form_of
from posttrain.training.forms.base import EncodeSettings
from posttrain.training.prepare import longest_row
from posttrain.training.progress import Silent
from posttrain.training.result import TrainResult, finished_run
from posttrain.training.run import train as run_training
from posttrain.training.trackers import LOGS
from posttrain.tuners._virtual import VirtualTokens
from posttrain.tuners.lora import LoraConfig

__all__ = ["TrainMethodConfig", "target_rows", "train"]


class TrainMethodConfig(MethodConfig):
    """Training on the change."""

    kind: Literal["train"] = "train"
    """Training on the change's targets."""
    objective: Annotated[Config, ByKind("objective")] = Field(default="sft", validate_default=True)
    """What training minimises."""
    tuner: Annotated[Config, ByKind("tuner")] = Field(default="full", validate_default=True)
    """Which parameters move."""
    replay: Annotated[Config, ByKind("replay")] | None = None
    """Old examples mixed into every step, such as {kind: self, share: 0.9}."""
    penalty: PenaltiesOf = ()
    """What holds the old model in place besides, such as {kind: ewc}; one or a list."""
    data: DataSource | None = None
    """More new rows beside the targets: a file; {change} in its path becomes the change's name."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimiser, schedule and stopping rule."""
    batch: BatchConfig = BatchConfig()
    """How rows become batches."""
    max_length: int = Field(default=1024, ge=2)
    """Tokens of a row, at most."""
    precision: Arithmetic = "auto"
    """Arithmetic of the forward pass, as in `posttrain train`: bf16, float32, or auto."""
    save_dtype: SaveDtype = "auto"
    """Precision of the saved model; the model that is examined is rounded alike. auto: that of the base's own files."""
    stages: Literal["sequential", "multitask", "separate"] = "sequential"
    """In a study with stages: one after another, all together in one training, or each by a model of its own."""

    merge_back: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Weights between the model before (0) and the trained one (1) that are examined too, such as [0.3, 0.5, 0.7]."""

    _penalties_differ = field_validator("penalty")(each_kind_once)

    @field_validator("data")
    @classmethod
    def _only_change_in_braces(cls, value: DataSource | None) -> DataSource | None:
        only_change_in_braces([value.path or ""] if value is not None else ())
        return value

    @model_validator(mode="after")
    def _recomputable(self) -> TrainMethodConfig:
        check_recomputable(self.tuner, self.batch)
        return self

    @model_validator(mode="after")
    def _mergeable(self) -> TrainMethodConfig:
        if not self.merge_back:
            return self
        kind = self.tuner.model_dump()["kind"]
        if kind in BESIDE:
            raise ValueError(f"merge_back: {kind} puts something beside the weights, there is nothing between")
        if form_of(self.objective).head != "causal":
            raise ValueError("merge_back: the trained model has a head that the model before has not")
        names = [merge_name(a) for a in self.merge_back]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"merge_back: two of them are {twice[0]}")
        if self.stages == "separate":
            raise ValueError("merge_back: with stages: separate there is no one trained model")
        return self

    @property
    def needs_change(self) -> bool:
        """Rows of `data` are enough."""
        return self.data is None

    @property
    def learns_stages(self) -> bool:
        """Unless it has `data` of its own."""
        return self.data is None

    def stages_barred(self, stages: Sequence[StageConfig], base: Path, forbidden: frozenset[str]) -> list[str]:
        """Rows of the stages that ask what an exam asks."""
        return [str(row) for stage in stages for row in colliding(stage.source(base), forbidden)]

    def stage_work(self, new_tokens: Sequence[int]) -> Work:
        """One training of all stages' rows, or one of each stage's."""
        if self.stages == "multitask":
            return self.work(sum(new_tokens))
        each = [self.work(tokens) for tokens in new_tokens]
        return Work(sum(one.steps for one in each), sum(one.tokens for one in each))

    def named_checkpoints(self, stages: int) -> int:
        """Those after each stage but the last, and those between before and after."""
        return (0 if self.stages == "multitask" else max(stages - 1, 0)) + len(self.merge_back)

    def barred(self, change: str, base: Path, forbidden: frozenset[str]) -> list[str]:
        """Rows that ask what an exam asks; all prompts of all exams where the rows are not known yet."""
        found = [str(row) for row in colliding(self.source(change, base), forbidden)]
        if isinstance(self.replay, ReplayConfig):
            rows = self.replay.for_change(change).rows(base)
            if rows is None:
                return [*found, *sorted(forbidden)]
            found += [c.messages[0].content for c in prompts_collide(rows, forbidden)]
        return found

    def source(self, change: str, base: Path) -> DataSource | None:
        """Where the extra rows of a change are."""
        if self.data is None or self.data.path is None:
            return self.data
        return self.data.model_copy(update={"path": self.data.path.replace("{change}", change)}).at(base)

    def work(self, new_tokens: int) -> Work:
        """Steps as configured, or as many as the passes take; a step reads new rows and their share of replay."""
        at_once = self.batch.tokens * self.batch.accumulate
        steps = self.optimizer.max_steps or round((self.optimizer.epochs or 3) * math.ceil(new_tokens / at_once))
        share = self.replay.share if isinstance(self.replay, ReplayConfig) else 0.0
        return Work(steps, round(steps * min(new_tokens, at_once) / (1 - share)))

    def characters(self, change: str, base: Path) -> int:
        """What stands in the rows of `data`, braces and keys of JSON included; 0 where they are on the hub."""
        source = self.source(change, base)
        return Path(source.path).stat().st_size if source is not None and source.path else 0

    def files(self, change: str) -> list[str]:
        """The extra rows, and the files of replay and penalties."""
        own = [self.data.path.replace("{change}", change)] if self.data is not None and self.data.path else []
        replay = self.replay.for_change(change).files() if isinstance(self.replay, ReplayConfig) else []
        penalties = [path for part in self.penalty if isinstance(part, PenaltyConfig) for path in part.files()]
        return [*own, *replay, *penalties]


def target_rows(change: Change | None) -> list[Conversation]:
    """The change's targets as conversations to learn."""
    rows = []
    for i, target in enumerate(change.target if change is not None else ()):
        turns = (
            (Message("user", target.prompt),)
            if isinstance(target.prompt, str)
            else tuple(Message(turn.role, turn.content, train=False) for turn in target.prompt)
        )
        place = f"{change.path or change.name if change is not None else ''}: target {i + 1}"
        rows.append(Conversation((*turns, Message("assistant", target.answer[0])), place))
    return rows


LONG = "raise max_length"
"""The mend for a row that is too long: a study's method drops and cuts none."""


@lru_cache(maxsize=64)
def _records(source: str, changed_ns: int) -> list[Record]:
    """The rows of a source; kept, since every cell of a study asks for them."""
    with with_mends(LONG):
        return read_records(DataSource.model_validate_json(source)).records


def rows_of(source: DataSource | None) -> list[Record]:
    """The rows of a source, none of none."""
    if source is None:
        return []
    changed_ns = Path(source.path).stat().st_mtime_ns if source.path and Path(source.path).is_file() else 0
    return _records(source.model_dump_json(), changed_ns)


def colliding(source: DataSource | None, forbidden: frozenset[str]) -> list[Problem]:
    """The rows of a source that ask what an exam asks."""
    talks = [talk for record in rows_of(source) if (talk := talk_of(record)) is not None]
    mend = "training on an exam's question measures nothing: take the row out of the data or the probe out of the exam"
    mend += " (may_train_on names exams that shall measure memory)"
    return [
        Problem(c.location, "this row's question is asked by the exam", mend) for c in prompts_collide(talks, forbidden)
    ]


def extra_rows(config: TrainMethodConfig, context: MethodContext) -> list[Record]:
    """The rows of `data`. DataError when one of them asks what an exam of the study asks."""
    source = config.source(context.change.name if context.change is not None else "", context.base)
    asked = colliding(source, context.forbidden)
    if asked:
        raise DataError(*asked)
    return rows_of(source)


def silent_about(
    change: Change | None, old: list[Encoded], tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> list[Encoded]:
    """Replayed rows without those that name a target's subject: they would teach the old answer beside the new one."""
    if change is None:
        return old
    subjects = [target.subject.casefold() for target in change.target if target.subject]
    kept = [row for row in old if not any(s in tokenizer.decode(row.input_ids).casefold() for s in subjects)]
    if len(kept) < len(old):
        say(f"replay: {len(old) - len(kept)} of {len(old)} rows name the target's subject and are left out")
    if old and not kept:
        names = ", ".join(target.subject for target in change.target if target.subject)
        raise DataError(Problem(change.path or change.name, f"every replayed row names {names}", "replay other rows"))
    return kept


class Steps(Silent):
    """Passes training steps on to the study, and keeps what training says for the cell's card."""

    def __init__(self, context: MethodContext, notes: list[str]) -> None:
        self.context = context
        self.notes = notes
        self.listener = listener()
        self.steps = 0

    def say(self, text: str) -> None:
        self.notes.append(text)

    def doing(self, work: Doing) -> None:
        if self.listener is not None:
            self.listener(work)

    def start(self, first: int, steps: int) -> None:
        self.steps = steps
        if first:  # of an earlier run, which was stopped in this cell
            self.context.say(f"{self.context.folder.name}: training goes on after step {first} of {steps}")

    def step(self, entry: Mapping[str, Any]) -> None:
        self.context.on_step({**entry, "steps": self.steps})


def seeded(part: Config, seed: int) -> Config:
    """A tuner or objective with random parts takes the cell's seed, unless the study gives it one."""
    own = "seed" in type(part).model_fields and "seed" not in part.model_fields_set
    return part.model_copy(update={"seed": seed}) if own else part


PRESENT_TOKENS = 128
"""The longest present answer that an objective may learn against."""


@register("method", "train", config=TrainMethodConfig)
def train(config: Config, context: MethodContext) -> MethodResult:
    """A copy of the model, trained; its weights are kept when the study says so."""
    assert isinstance(config, TrainMethodConfig)
    if context.change is not None and isinstance(config.replay, ReplayConfig):
        config = config.model_copy(update={"replay": config.replay.for_change(context.change.name)})
    if context.stages:
        from posttrain.studies.stages import train_stages  # which needs what is here

        return train_stages(config, context)
    wanted = context.resumable or context.keep != "none" or context.saves
    output = context.folder / "training" if wanted else None
    resume = output is None or _caught_up(output, context)
    done = finished_run(output, context.load) if output is not None and resume else None
    notes: list[str] = []
    if done is None:
        lent = context.lent if leaves_weights(config.tuner) else None
        done = _trained(config, context, (lent or context.working)(), output, notes, resume=resume)
    examine_between(config, context, done.model)
    respondent = ModelRespondent(LoadedModel(done.model, done.tokenizer, context.name()))
    cost = {
        "train_s": done.wall_s,
        "steps": float(done.steps),
        "tokens": float(done.tokens),
        "peak_gib": done.peak_gib,
        "moved": float(done.moved.trainable),
        "moved_share": done.moved.share,
    }
    scratch: list[Path] = []
    if output is not None and context.keep != "all":
        scratch = [output / "checkpoints"] if context.keep == "final" else [output]
    weights = output / "model" if output is not None and context.keep != "none" else None
    return MethodResult(respondent, cost, done.history, weights, notes, scratch)


def leaves_weights(tuner: Config) -> bool:
    """Whether a tuner never writes to the model's own weights, but puts something beside them."""
    if isinstance(tuner, LoraConfig):
        return tuner.init == "default" and not tuner.modules_to_save  # PiSSA takes its adapter out of the weights
    return isinstance(tuner, VirtualTokens)


def examine_between(config: TrainMethodConfig, context: MethodContext, tuned: PreTrainedModel | PeftModel) -> None:
    """The exams of the models between the one before and the trained one."""
    waiting = [a for a in config.merge_back if not context.examined_as(merge_name(a))]
    between = MergeBack(tuned, context.before.model) if waiting else None
    for a in waiting:
        assert between is not None
        with between.at(a) as model:
            named = LoadedModel(model, context.before.tokenizer, context.name(merge_name(a)))
            context.examine_as(ModelRespondent(named), merge_name(a))


def _caught_up(output: Path, context: MethodContext) -> bool:
    """Examine what an earlier run has saved and not examined; False when training must begin anew, because a step that
    is to be examined was passed and its checkpoint is gone.
    """
    saved = checkpoints_in(output / "checkpoints")
    finished = RunFolder(output).result_in()
    newest = int(finished["steps"]) if finished else max(saved, default=0)
    missing = [s for s in context.saves.due(newest) if not context.examined(s) and not (finished and s == newest)]
    gone = [s for s in missing if s not in saved]
    if gone:
        context.say(f"the checkpoint of step {gone[0]} is to be examined and is gone: training begins anew")
        context.forget()
        return False
    for step in missing:
        context.examine(ModelRespondent(context.load(saved[step])._replace(name=context.name(step))), step)
    return True


def settings_of(config: TrainMethodConfig, context: MethodContext, model: str) -> TrainConfig:
    """What a training of a cell is configured as."""
    return TrainConfig(
        model=model,
        objective=seeded(config.objective, context.seed),
        tuner=seeded(config.tuner, context.seed),
        replay=config.replay,
        penalty=config.penalty,
        optimizer=config.optimizer,
        batch=config.batch,
        max_length=config.max_length,
        precision=config.precision,
        save_dtype=config.save_dtype,
        seed=context.seed,
        save_every_steps=context.saves.every,
        save_at_steps=context.saves.at,
        keep_checkpoints=None if context.keep == "all" else 1,
        report_to=context.report_to,
    )


def target_records(settings: TrainConfig, context: MethodContext, say: Callable[[str], None]) -> list[Record]:
    """The change's targets as the objective learns them: what is wanted, what the model says now, or both."""
    targets = target_rows(context.change)
    if not targets:
        return []

    def present() -> list[str]:
        prompts: list[Prompt] = [target.messages[:-1] for target in targets]
        with placed(lambda number: targets[number].location):
            return [answer.text for answer in context.before.answers(prompts, max_new_tokens=PRESENT_TOKENS)]

    made = form_of(settings.objective).from_targets(targets, present)
    if made.skipped:
        say(
            f"{made.skipped} of {len(targets)} targets are left out: the model answers as wanted already, or not at all"
        )
    return made.records


def encoded_rows(
    objective: Config, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Any]:
    """Rows as the objective's form has them."""
    with with_mends(LONG):
        rows: list[Any] = form_of(objective).encode(records, tokenizer, EncodeSettings(objective, max_length)).rows
    return rows


def _trained(
    config: TrainMethodConfig,
    context: MethodContext,
    loaded: LoadedModel,
    output: Path | None,
    notes: list[str],
    *,
    resume: bool,
) -> TrainResult:
    """Train the working copy."""
    settings = settings_of(config, context, loaded.name)
    steps = Steps(context, notes)
    stay_at_first_day(loaded.tokenizer, output, resume=resume, say=steps.say)
    records = [*target_records(settings, context, steps.say), *extra_rows(config, context)]
    max_length = longest_row(settings, loaded.model)
    rows = encoded_rows(settings.objective, records, loaded.tokenizer, max_length)
    old = context.replay(config.replay, context.seed, max_length) if config.replay is not None else []
    old = silent_about(context.change, old, loaded.tokenizer, steps.say)
    trained = run_training(
        settings,
        loaded=loaded,
        rows=rows,
        replay_rows=old,
        output=output,
        resume=resume,
        progress=steps,
        examine=lambda model, step: context.examine(
            ModelRespondent(loaded._replace(model=model, name=context.name(step))), step
        ),
        base=context.base,
        forbidden=context.forbidden,
        before=context.before.model,
        logs=context.folder / LOGS,
    )
    late = [step for step in context.saves.at if step > trained.steps]
    if late:
        notes.append(f"steps {', '.join(map(str, late))} were not reached: training ended after {trained.steps}")
    return trained
