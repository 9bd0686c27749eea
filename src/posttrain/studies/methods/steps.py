"""A chain: several methods one after another, each from what the one before has left.

Example: train a fact, then something else, then blend half-way back. Does the model still know the fact? Every step's
end is examined, and the report shows what the model has kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from posttrain.config.base import ByKind
from posttrain.registry import register
from posttrain.studies.candidates import Candidate, CellContext
from posttrain.studies.chains import chain
from posttrain.studies.config import MethodConfig

__all__ = ["StepsConfig", "steps"]


class StepsConfig(MethodConfig):
    """Several methods one after another."""

    kind: Literal["steps"] = "steps"
    """Several methods one after another; `kind` may be left out where `steps` is given."""
    input_names = ()
    steps: tuple[Annotated[MethodConfig, ByKind("method", without=("steps",))], ...] = Field(min_length=2)
    """The methods, in order: each starts from the model that the one before it has left."""

    @field_validator("steps")
    @classmethod
    def _can_follow(cls, value: tuple[MethodConfig, ...]) -> tuple[MethodConfig, ...]:
        for step in value[:-1]:
            if not step.leaves_product:
                raise ValueError(f"{step.label} leaves no model that the next step could start from")
        for step in value:
            if step.start:
                raise ValueError("a step starts from the one before it: leave out 'start'")
        return tuple(step.as_step() for step in value)

    @property
    def parts(self) -> tuple[MethodConfig, ...]:
        return self.steps

    @property
    def needs_change(self) -> bool:
        return any(step.needs_change for step in self.steps)

    @property
    def leaves_product(self) -> bool:
        return self.steps[-1].leaves_product

    @property
    def summary(self) -> str:
        return " \u2192 ".join(step.summary for step in self.steps)

    @property
    def all_inputs(self) -> dict[str, str]:
        return {given: given for step in self.steps for given in step.all_inputs.values()}

    def barred(self, change: str, base: Path, forbidden: frozenset[str]) -> list[str]:
        return [line for step in self.steps for line in step.barred(change, base, forbidden)]

    def files(self, change: str) -> list[str]:
        return [path for step in self.steps for path in step.files(change)]


@register("method", "steps", config=StepsConfig)
def steps(config: StepsConfig, cell: CellContext) -> Iterator[Candidate]:
    """Yield each step's candidates. A step's end is the point `after <number>-<name>`; the last is the cell's end."""
    return chain(config.steps, cell)
