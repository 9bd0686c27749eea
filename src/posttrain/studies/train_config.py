"""The configuration of the method `train` in a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from posttrain.config.base import ByKind, Config
from posttrain.data.readers import DataSource
from posttrain.retention.penalty._base import PenaltyConfig
from posttrain.retention.selection import ReplayConfig, only_change_in_braces, prompts_collide
from posttrain.studies.candidates import CellContext, Point
from posttrain.studies.config import MethodConfig
from posttrain.studies.merge_back import BESIDE
from posttrain.studies.train_rows import colliding
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
from posttrain.training.forms import form_of
from posttrain.tuners._virtual import VirtualTokens
from posttrain.tuners.lora import LoraConfig

__all__ = ["TrainMethodConfig", "Work", "leaves_weights", "settings_of"]


class Work(NamedTuple):
    """The number of optimiser steps, and of the tokens that they read."""

    steps: int
    tokens: int

    @classmethod
    def of(cls, each: Sequence[Work]) -> Work:
        """Return the sum of several."""
        return cls(sum(one.steps for one in each), sum(one.tokens for one in each))


class TrainMethodConfig(MethodConfig):
    """Training on the change."""

    kind: Literal["train"] = "train"
    """Training on the change's targets."""
    input_names = ()
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
    targets: bool | None = None
    """Whether the change's targets are learned. Left out: yes, but not beside `data` in a step of a chain or after
    `start`, so that what was taught before is not taught again."""
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
        names = [Point("blend", a).name for a in self.merge_back]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"merge_back: two of them are {twice[0]}")
        if self.stages == "separate":
            raise ValueError("merge_back: with stages: separate there is no one trained model")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> TrainMethodConfig:
        if self.targets is False and self.data is None:
            raise ValueError("targets: false leaves nothing to learn; give data")
        return self

    @property
    def learns_targets(self) -> bool:
        """Whether the change's targets are among its rows."""
        return self.targets if self.targets is not None else self.data is None or not self.start

    def as_step(self) -> TrainMethodConfig:
        """Its `data` alone, where it has some and does not ask for the targets."""
        return self if self.data is None or self.targets is not None else self.model_copy(update={"targets": False})

    @property
    def summary(self) -> str:
        """The kinds of objective, tuner, replay and penalties, joined by commas."""
        kept = [part.model_dump()["kind"] for part in self.penalty]
        replay = [f"replay {self.replay.model_dump()['kind']}"] if self.replay is not None else []
        return ", ".join([self.objective.model_dump()["kind"], self.tuner.model_dump()["kind"], *replay, *kept])

    @property
    def leaves_product(self) -> bool:
        """Whether it leaves one trained model; separate stages leave several."""
        return self.stages != "separate"

    @property
    def needs_change(self) -> bool:
        """Whether it needs a change: not if it has rows of `data`, unless the targets are asked for."""
        return self.data is None or self.targets is True

    @property
    def learns_stages(self) -> bool:
        """Whether it learns the study's stages: not if it has `data` of its own."""
        return self.data is None

    def stage_work(self, new_tokens: Sequence[int]) -> Work:
        """Estimate the work of all stages, in one training or one training each. new_tokens: tokens of each stage."""
        return Work.of([self.work(n) for n in ([sum(new_tokens)] if self.stages == "multitask" else new_tokens)])

    def named_points(self, stages: int) -> int:
        """Return the number of candidates after each stage but the last, and between before and after (`merge_back`).
        The end and the candidates at optimiser steps are not counted. stages: the number of stages.
        """
        return (0 if self.stages == "multitask" else max(stages - 1, 0)) + len(self.merge_back)

    def barred(self, change: str, base: Path, forbidden: frozenset[str]) -> list[str]:
        """Return the rows that ask what an exam asks, or all prompts of all exams if the rows are not known yet."""
        found = [str(row) for source in self.sources([change], base) for row in colliding(source, forbidden)]
        if isinstance(self.replay, ReplayConfig):
            rows = self.replay.for_change(change).rows(base)
            if rows is None:
                return [*found, *sorted(forbidden)]
            found += [c.messages[0].content for c in prompts_collide(rows, forbidden)]
        return found

    def sources(self, changes: Sequence[str], base: Path) -> list[DataSource]:
        """Return the sources of the extra rows for some changes, each file once."""
        if self.data is None or self.data.path is None:
            return [self.data] if self.data is not None else []
        paths = dict.fromkeys(self.data.path.replace("{change}", name) for name in changes)
        return [self.data.model_copy(update={"path": path}).at(base) for path in paths]

    def replayed(self, change: str) -> str:
        """Return the settings that decide which rows the model makes for the replay; empty without a replay."""
        if not isinstance(self.replay, ReplayConfig):
            return ""
        return self.replay.for_change(change).model_dump_json(exclude={"share", "weight", "loss"})

    def work(self, new_tokens: int) -> Work:
        """Estimate the work for `new_tokens` tokens of new rows. The steps are those configured, or as many as the
        epochs take. A step reads new rows and their share of replay.
        """
        at_once = self.batch.tokens * self.batch.accumulate
        steps = self.optimizer.max_steps or round((self.optimizer.epochs or 3) * math.ceil(new_tokens / at_once))
        share = self.replay.share if isinstance(self.replay, ReplayConfig) else 0.0
        return Work(steps, round(steps * min(new_tokens, at_once) / (1 - share)))

    def files(self, change: str) -> list[str]:
        """Return the paths of the extra rows, and of the files of replay and penalties."""
        own = [self.data.path.replace("{change}", change)] if self.data is not None and self.data.path else []
        replay = self.replay.for_change(change).files() if isinstance(self.replay, ReplayConfig) else []
        penalties = [path for part in self.penalty if isinstance(part, PenaltyConfig) for path in part.files()]
        return [*own, *replay, *penalties]


def seeded(part: Config, seed: int) -> Config:
    """Return a tuner or objective with the cell's seed, if it has a seed and the study does not set it."""
    own = "seed" in type(part).model_fields and "seed" not in part.model_fields_set
    return part.model_copy(update={"seed": seed}) if own else part


def leaves_weights(tuner: Config) -> bool:
    """Return whether a tuner never writes to the model's own weights, but puts something beside them."""
    if isinstance(tuner, LoraConfig):
        return tuner.init == "default" and not tuner.modules_to_save  # PiSSA subtracts its adapter from the weights
    return isinstance(tuner, VirtualTokens)


def settings_of(config: TrainMethodConfig, cell: CellContext, model: str) -> TrainConfig:
    """Return the training configuration of a cell or of a part of it: the fields of `config` that it shares. model: the
    name of the model that is trained.
    """
    both = {name: value for name, value in config if name in TrainConfig.model_fields and name != "data"}
    both |= {name: seeded(both[name], cell.seed) for name in ("objective", "tuner")}
    return TrainConfig(
        **both,
        model=model,
        seed=cell.seed,
        save_every_steps=cell.saves.every,
        save_at_steps=cell.saves.at,
        keep_checkpoints=None if cell.keep == "all" else 1,
        report_to=cell.report_to,
    )
