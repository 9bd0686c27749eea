"""The untouched model in other arithmetic: how much an exam finds lost where nothing was changed.

Every study with a change exam has this row once per change, before the other methods (`noise_floor: none` leaves it
out). A method's locality counts as a loss only if it is below this row by a paired test (`exams/floor.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from posttrain.exams.floor import NOISE_FLOOR
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.models.perturbed import Arithmetic, perturbed, resolve_arithmetic
from posttrain.registry import register
from posttrain.studies.candidates import END, Candidate, CellContext
from posttrain.studies.config import MethodConfig

__all__ = ["NoiseFloorConfig", "noise_floor"]


class NoiseFloorConfig(MethodConfig):
    """The untouched model in other arithmetic."""

    kind: Literal["noise_floor"] = "noise_floor"
    """The untouched model in other arithmetic."""
    input_names = ()
    takes_sequence = True
    name: str = NOISE_FLOOR
    """The row's name."""
    arithmetic: Arithmetic = "auto"
    """bf16 (computed in bfloat16), int8 (weights rounded), or auto: bf16, and int8 where the model is in 16 bits."""

    @property
    def needs_change(self) -> bool:
        return False

    @property
    def summary(self) -> str:
        return f"the untouched model in other arithmetic ({self.arithmetic})"


@register("method", "noise_floor", config=NoiseFloorConfig)
def noise_floor(config: NoiseFloorConfig, cell: CellContext) -> Iterator[Candidate]:
    """Yield a copy of the untouched model in other arithmetic: computed in bfloat16, or with rounded weights."""
    before = cell.bench.before
    arithmetic = resolve_arithmetic(before.model, config.arithmetic)
    loaded = LoadedModel(perturbed(before.model, arithmetic), before.tokenizer, cell.name())
    note = f"The untouched model in other arithmetic ({arithmetic}): what it loses is no loss."
    yield Candidate(END, ModelRespondent(loaded), notes=(note,))
