"""Round the weights, as a quantised copy of the model does: what of a change survives that?

The weight matrices take the values that 8 or 4 bits (or a 16-bit float) can hold, and are stored and computed as
before. So the answers are those of weight-only quantisation, and the model is no smaller and no faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.models.perturbed import Rounding, round_weights
from posttrain.models.save import save_model
from posttrain.registry import register
from posttrain.studies.candidates import END, Candidate, CellContext
from posttrain.studies.config import MethodConfig

__all__ = ["RoundConfig", "round_"]


class RoundConfig(MethodConfig):
    """The model that it starts from, with rounded weights."""

    kind: Literal["round"] = "round"
    """The model that it starts from, with rounded weights."""
    to: Rounding = "int8"
    """int8 or int4: each row of a matrix to the steps between minus and plus its largest value; bfloat16, float16: the
    nearest such number."""
    input_names = ()

    @property
    def needs_change(self) -> bool:
        return False

    @property
    def leaves_product(self) -> bool:
        return True

    @property
    def summary(self) -> str:
        return f"rounded to {self.to}"


@register("method", "round", config=RoundConfig)
def round_(config: RoundConfig, cell: CellContext) -> Iterator[Candidate]:
    """Yield the rounded model at its end; nothing is trained."""
    loaded = cell.bench.working()
    round_weights(loaded.model, config.to)
    product = None
    if cell.keep != "none":
        product = cell.folder / "model"
        save_model(loaded.model, loaded.tokenizer, product)
    named = LoadedModel(loaded.model, loaded.tokenizer, cell.name())
    yield Candidate(END, ModelRespondent(named), product=product, notes=[f"weights rounded to {config.to}"])
