"""Go part of the way back: a model between the one that the method starts from and another one, weight by weight.

    theta = (1 - weight) theta_toward + weight theta_start

The step of a chain that keeps some of what was taught and regains some of what was lost (Wortsman et al. 2022,
arXiv:2109.01903). To examine several weights between before and after a training, give it `merge_back`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.models.save import save_model
from posttrain.registry import register
from posttrain.studies.candidates import END, Candidate, CellContext
from posttrain.studies.config import MethodConfig
from posttrain.studies.merge_back import Between

__all__ = ["BlendConfig", "blend"]

TOWARD = "toward"


class BlendConfig(MethodConfig):
    """A model between two models of one shape."""

    kind: Literal["blend"] = "blend"
    """A model between the one it starts from and the study's own, or the input `toward`."""
    weight: float = Field(default=0.5, gt=0, lt=1)
    """The share of the model that it starts from; the rest is of the study's untouched model or of `toward`."""

    @property
    def needs_change(self) -> bool:
        return False

    @property
    def leaves_product(self) -> bool:
        return True

    @property
    def summary(self) -> str:
        return f"blend {self.weight:g}"


@register("method", "blend", config=BlendConfig, paper="arXiv:2109.01903")
def blend(config: BlendConfig, cell: CellContext) -> Iterator[Candidate]:
    """The model between; nothing is trained."""
    other = cell.inputs[TOWARD]() if TOWARD in cell.inputs else cell.untouched.loaded
    loaded = cell.bench.working()
    with Between(loaded.model, other.model).at(config.weight) as model:
        named = LoadedModel(model, loaded.tokenizer, cell.name())
        product = None
        if cell.keep != "none":
            product = cell.folder / "model"
            save_model(model, loaded.tokenizer, product)
        note = f"{config.weight:g} of the model it starts from, {1 - config.weight:g} of the other one"
        yield Candidate(END, ModelRespondent(named), product=product, notes=(note,))
