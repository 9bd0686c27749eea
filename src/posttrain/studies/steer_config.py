"""The configuration of the method `steer` in a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.data.readers import DataSource
from posttrain.editing.steering import VectorTraining
from posttrain.retention.selection import only_change_in_braces
from posttrain.studies.candidates import Point
from posttrain.studies.config import MethodConfig
from posttrain.studies.train_rows import colliding

__all__ = ["SteerConfig"]


class SteerConfig(MethodConfig):
    """A vector that is added to the states behind one layer."""

    kind: Literal["steer"] = "steer"
    """A vector that is added to the states behind one layer; no weight changes."""
    input_names = ()
    takes_sequence = True
    source: Literal["contrast", "trained"] = "contrast"
    """contrast: the states in the wanted answers minus those in the present ones; trained: by gradient on the wanted
    answers."""
    pairs: DataSource | None = None
    """Rows instead of the change's targets: {prompt, positive, negative}, or rows with one answer, whose negative is
    what the model says now; {change} in the path becomes the change's name."""
    layer: Annotated[int, Field(strict=True)] | Literal["auto"] = "auto"
    """The layer whose output is steered, from 0; negative numbers count from the end. auto: the middle one."""
    where: Literal["all", "answer"] = "all"
    """Which tokens are steered: all, or those from the last one of the prompt on."""
    strength: float | Literal["search"] = 1.0
    """What the vector is multiplied by at the end. search: the one of `strengths` that the study's exams with `role:
    select` like best."""
    strengths: tuple[float, ...] | None = None
    """Strengths that are examined too, such as [0.5, 1, 2]; negative ones steer away."""
    training: VectorTraining = VectorTraining()
    """How the vector is trained, with `source: trained`."""

    @field_validator("pairs")
    @classmethod
    def _only_change_in_braces(cls, value: DataSource | None) -> DataSource | None:
        only_change_in_braces([value.path or ""] if value is not None else ())
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SteerConfig:
        if self.strengths == ():
            raise ValueError("strengths is empty; name some, such as [0.5, 1, 2], or leave it out")
        given = [*(self.strengths or ()), *([] if self.strength == "search" else [self.strength])]
        if 0 in given:
            raise ValueError("a strength of 0 is the untouched model, which is examined anyway")
        names = [Point("strength", value).name for value in self.strengths or ()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"strengths: two of them are {twice[0]}")
        if self.strength == "search" and self.strengths is None:
            raise ValueError("strength: search chooses among 'strengths', and there are none")
        if self.source == "contrast" and "training" in self.model_fields_set:
            raise ValueError("training is for source: trained; a contrast is not trained")
        return self

    @property
    def chooses(self) -> str:
        return "strength: search" if self.strength == "search" else ""

    @property
    def needs_change(self) -> bool:
        return self.pairs is None

    @property
    def summary(self) -> str:
        at = "the middle layer" if self.layer == "auto" else f"layer {self.layer}"
        answers = ", answers only" if self.where == "answer" else ""
        return f"{self.source} vector behind {at}{answers}, strength {self.strength}"

    def named_points(self, stages: int) -> int:
        return len(self.strengths or ())

    def sources(self, changes: Sequence[str], base: Path) -> list[DataSource]:
        """Return the sources of `pairs` for some changes, each file once."""
        if self.pairs is None or self.pairs.path is None:
            return [] if self.pairs is None else [self.pairs]
        paths = dict.fromkeys(self.pairs.path.replace("{change}", name) for name in changes)
        return [self.pairs.model_copy(update={"path": path}).at(base) for path in paths]

    def barred(self, change: str, base: Path, forbidden: frozenset[str]) -> list[str]:
        return [str(row) for source in self.sources([change], base) for row in colliding(source, forbidden)]

    def files(self, change: str) -> list[str]:
        return [self.pairs.path.replace("{change}", change)] if self.pairs is not None and self.pairs.path else []
