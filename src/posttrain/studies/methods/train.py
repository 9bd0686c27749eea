"""Train the model on the change's targets, alone or with other rows and replay beside them.

The new rows are the targets' prompts and answers (all of them), and the rows of `data` where given. What training does
to everything else is what the exam is for; `replay` is what holds it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from transformers import PreTrainedTokenizerBase

from posttrain import registry
from posttrain.config.base import ByKind, Config
from posttrain.config.change import Change
from posttrain.data.chat import Encoded, encode_all
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Completion, Conversation, Message, Record, Text
from posttrain.errors import DataError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from posttrain.registry import register
from posttrain.retention.selection import ReplayConfig, prompts_collide
from posttrain.studies.config import MethodConfig, Work
from posttrain.studies.context import MethodContext, MethodResult
from posttrain.training.checkpoints import checkpoints_in
from posttrain.training.config import BatchConfig, OptimizerConfig, TrainConfig
from posttrain.training.prepare import longest_row
from posttrain.training.progress import Silent
from posttrain.training.run import train as run_training

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
    data: DataSource | None = None
    """More new rows beside the targets: a file; {change} in its path becomes the change's name."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimiser, schedule and stopping rule."""
    batch: BatchConfig = BatchConfig()
    """How rows become batches."""
    max_length: int = Field(default=1024, ge=2)
    """Tokens of a row, at most."""

    @field_validator("data")
    @classmethod
    def _only_change_in_braces(cls, value: DataSource | None) -> DataSource | None:
        if value is not None and value.path and "{" in value.path.replace("{change}", ""):
            raise ValueError("only {change} may stand in braces in the path")
        return value

    @property
    def brings_rows(self) -> bool:
        """Rows of `data` and of replay."""
        return self.data is not None or self.replay is not None

    def work(self, new_tokens: int) -> Work:
        """Steps as configured; a step's tokens are the new rows' and what replay adds to them."""
        steps = self.optimizer.max_steps or round(self.optimizer.epochs or 3)
        share = self.replay.share if isinstance(self.replay, ReplayConfig) else 0.0
        return Work(steps, round(steps * new_tokens / (1 - share)))

    def files(self, change: str) -> list[str]:
        """The extra rows and the replay's files."""
        own = [self.data.path.replace("{change}", change)] if self.data is not None and self.data.path else []
        return own + (self.replay.files() if isinstance(self.replay, ReplayConfig) else [])


def target_rows(change: Change) -> list[Conversation]:
    """The change's targets as conversations to learn."""
    rows = []
    for i, target in enumerate(change.target):
        turns = (
            (Message("user", target.prompt),)
            if isinstance(target.prompt, str)
            else tuple(Message(turn.role, turn.content, train=False) for turn in target.prompt)
        )
        place = f"{change.path or change.name}: target {i + 1}"
        rows.append(Conversation((*turns, Message("assistant", target.answer[0])), place))
    return rows


def extra_rows(config: TrainMethodConfig, context: MethodContext) -> list[Record]:
    """The rows of `data`. DataError when one of them asks what an exam of the study asks."""
    if config.data is None:
        return []
    source = config.data
    if source.path:
        source = source.model_copy(update={"path": source.path.replace("{change}", context.change.name)})
    records = read_records(source.at(context.base)).records
    talks = [r.as_conversation() if isinstance(r, Completion) else r for r in records if not isinstance(r, Text)]
    asked = prompts_collide(talks, context.forbidden)
    if asked:
        mend = (
            "training on an exam's question measures nothing: take the row out of the data or the probe out of the exam"
        )
        raise DataError(*(Problem(c.place, "this row's question is asked by the exam", mend) for c in asked))
    return records


def silent_about(
    change: Change, old: list[Encoded], tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> list[Encoded]:
    """Replayed rows without those that name a target's subject: they would teach the old answer beside the new one."""
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

    def __init__(self, context: MethodContext) -> None:
        self.context = context
        self.notes: list[str] = []

    def say(self, text: str) -> None:
        self.notes.append(text)

    def step(self, entry: Mapping[str, Any]) -> None:
        self.context.on_step(entry)


def seeded(part: Config, seed: int) -> Config:
    """A tuner with random parts takes the cell's seed, unless the study gives it one."""
    own = "seed" in type(part).model_fields and "seed" not in part.model_fields_set
    return part.model_copy(update={"seed": seed}) if own else part


@register("method", "train", config=TrainMethodConfig)
def train(config: Config, context: MethodContext) -> MethodResult:
    """A copy of the model, trained; its weights are kept when the study says so."""
    assert isinstance(config, TrainMethodConfig)
    loaded = context.working()
    settings = TrainConfig(
        model=loaded.name,
        objective=config.objective,
        tuner=seeded(config.tuner, context.seed),
        replay=config.replay,
        optimizer=config.optimizer,
        batch=config.batch,
        max_length=config.max_length,
        seed=context.seed,
        save_every_steps=context.every,
        keep_checkpoints=None,
    )
    records = [*target_rows(context.change), *extra_rows(config, context)]
    max_length = longest_row(settings, loaded.model)
    objective = registry.load("objective", settings.objective.model_dump()["kind"])
    rows = encode_all(records, loaded.tokenizer, max_length=max_length, loss_on=objective.config.supervises).rows
    old = context.replay(config.replay, context.seed, max_length) if config.replay is not None else []
    steps = Steps(context)
    old = silent_about(context.change, old, loaded.tokenizer, steps.say)
    output = context.folder / "training" if context.keep != "none" or context.every else None
    trained = run_training(
        settings, loaded=loaded, rows=rows, replay_rows=old, output=output, progress=steps, base=context.base
    )
    if output is not None:
        _examine_checkpoints(output / "checkpoints", trained.steps, context)
    weights = None
    if output is not None and context.keep == "none":
        shutil.rmtree(output)
    elif output is not None:
        weights = output / "model"
        if context.keep == "final":
            shutil.rmtree(output / "checkpoints", ignore_errors=True)
    respondent = ModelRespondent(loaded._replace(model=trained.model))
    cost = {
        "train_s": trained.wall_s,
        "steps": float(trained.steps),
        "tokens": float(trained.tokens),
        "peak_gib": trained.peak_gib,
    }
    return MethodResult(respondent, cost, trained.history, weights, steps.notes)


def _examine_checkpoints(folder: Path, last: int, context: MethodContext) -> None:
    """The exam at every saved step but the last, which is examined as `final`."""
    for step, path in sorted(checkpoints_in(folder).items()):
        if context.examine is not None and step != last:
            context.examine(ModelRespondent(load_model(str(path))), step)
