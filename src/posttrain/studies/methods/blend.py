"""Go part of the way back: a model between the one that the method starts from and another one, weight by weight.

    theta = (1 - weight) theta_toward + weight theta_start

As a step of a chain, it keeps a part of what was taught and regains a part of what was lost (Wortsman et al. 2022,
arXiv:2109.01903). To examine several weights between before and after a training, use the training's `merge_back`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

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
TRIED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The weights that `weight: search` tries."""


class BlendConfig(MethodConfig):
    """A model between two models of one shape."""

    kind: Literal["blend"] = "blend"
    """A model between the one it starts from and the study's own, or the input `toward`."""
    weight: Annotated[float, Field(gt=0, lt=1)] | Literal["search"] = 0.5
    """The share of the model that it starts from; the rest is of the study's untouched model or of `toward`. search:
    the one that the study's exams with `role: select` like best."""
    input_names = (TOWARD,)

    @property
    def chooses(self) -> str:
        return "weight: search" if self.weight == "search" else ""

    @property
    def needs_change(self) -> bool:
        return False

    @property
    def leaves_product(self) -> bool:
        return True

    @property
    def summary(self) -> str:
        return f"blend {self.weight}"


@register("method", "blend", config=BlendConfig, paper="arXiv:2109.01903")
def blend(config: BlendConfig, cell: CellContext) -> Iterator[Candidate]:
    """Yield the model between the two models at its end; nothing is trained."""
    other = cell.inputs[TOWARD]() if TOWARD in cell.inputs else cell.untouched.loaded
    loaded = cell.bench.working()
    between = Between(loaded.model, other.model)
    weight, notes = config.weight, list[str]()
    if weight == "search":
        weight, notes = _searched(between, loaded, cell)
    with between.at(weight) as model:
        named = LoadedModel(model, loaded.tokenizer, cell.name())
        product = None
        if cell.keep != "none":
            product = cell.folder / "model"
            save_model(model, loaded.tokenizer, product)
        notes = [*notes, f"{weight:g} of the model it starts from, {1 - weight:g} of the other one"]
        yield Candidate(END, ModelRespondent(named), product=product, notes=notes)


def _searched(between: Between, loaded: LoadedModel, cell: CellContext) -> tuple[float, list[str]]:
    """Return the weight with the best mean main score of the exams with `role: select`, and a note with all means. Of
    equally good weights, the largest is chosen."""
    found: dict[float, float] = {}
    for weight in TRIED:
        with between.at(weight) as model:
            scores = cell.select(ModelRespondent(LoadedModel(model, loaded.tokenizer, cell.name())))
        found[weight] = sum(scores.values()) / len(scores)
    best = max(found, key=lambda weight: (found[weight], weight))
    curve = ", ".join(f"{weight:g}: {value:.3f}" for weight, value in found.items())
    return best, [f"weight chosen by {', '.join(scores)}: {curve}"]
