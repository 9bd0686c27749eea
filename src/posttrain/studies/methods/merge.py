"""Merge models: add, subtract or average the weights of other methods' models and of models on disk.

Nothing is trained. The names in an expression are those of `inputs`, and `model`, the study's own untouched model. `w`
is a number: `weight`, or each of `weights`, which are all examined, so that the report shows the whole curve; `weight:
search` takes the one that the exams with `role: select` like best (arXiv:2212.04089 chooses it so).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from peft import PeftModel
from pydantic import Field, model_validator
from torch import Tensor

from posttrain.config.base import ByKind
from posttrain.errors import ConfigError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.merging.engine import in_memory
from posttrain.merging.expression import parse
from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.methods.linear import LinearConfig
from posttrain.models.added import added_to
from posttrain.models.load import LoadedModel
from posttrain.models.merge_adapter import merge_peft
from posttrain.models.save import save_model
from posttrain.registry import register
from posttrain.studies.candidates import END, Candidate, CellContext, Point
from posttrain.studies.config import MethodConfig

__all__ = ["MergeConfig", "merge"]

OWN = "model"
"""The name of the study's own model."""
FREE = "w"
"""The name of the number that is varied."""
TRIED = (0.2, 0.4, 0.6, 0.8, 1.0)
"""What `weight: search` tries if `weights` says nothing."""


class MergeConfig(MethodConfig):
    """A model merged of others."""

    kind: Literal["merge"] = "merge"
    """The weights of models are added, subtracted or averaged; nothing is trained."""
    expression: str | None = None
    """A sum of models whose weights sum to 1, such as model + w*(math - model). Names: inputs, model (the study's own),
    and the number w."""
    merger: Annotated[MergerConfig, ByKind("merger")] | None = None
    """A method instead, such as {kind: ties, density: 0.3}; it merges the inputs, on the study's model."""
    weight: float | Literal["search"] = 1.0
    """The number w: of the expression, or what a method's differences are multiplied by."""
    weights: tuple[float, ...] | None = Field(None, min_length=1)
    """Examine the merged model for each of these w, too."""

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
        return self.expression or f"merged by {self.merger.kind if self.merger else ''}"

    @model_validator(mode="after")
    def _one_way(self) -> MergeConfig:
        if (self.expression is None) == (self.merger is None):
            raise ValueError("give an expression or a merger, one of the two")
        if taken := [name for name in self.inputs if name in (OWN, FREE)]:
            raise ValueError(f"inputs: '{taken[0]}' has a meaning already; give the model another name")
        if self.expression is not None:
            parse(self.expression, [*self.inputs, OWN], "expression", {FREE: 0.5})
            if self.tries and FREE not in self.expression:
                raise ValueError("the expression has no w, which is to be varied")
        elif self.merger is not None and self.tries and "scale" not in type(self.merger).model_fields:
            raise ValueError(f"{self.merger.kind} has no scale, which is to be varied")
        return self

    @property
    def tries(self) -> tuple[float, ...]:
        """The numbers w that are tried."""
        return self.weights or (TRIED if self.weight == "search" else ())


@register("method", "merge", config=MergeConfig, paper="arXiv:2212.04089")
def merge(config: MergeConfig, cell: CellContext) -> Iterator[Candidate]:
    """Yield the merged model for each of the weights that are examined, and for the one at the end."""
    merged = _Merged(config, cell)
    for weight in config.weights or ():
        point = Point("strength", weight)
        if not cell.examined(point):
            yield Candidate(point, merged.at(weight, point))
    end, notes = merged.chosen()
    respondent = merged.at(end, END)
    product = None
    if cell.keep != "none":
        product = cell.folder / "model"
        save_model(merged.loaded.model, merged.loaded.tokenizer, product)
    same = Point("strength", end) if end in (config.weights or ()) else None
    yield Candidate(
        END, respondent, product=product, notes=[*notes, f"merged: {config.summary}, w = {end:g}"], same=same
    )


class _Merged:
    """A copy of the model whose weights are merged anew for each w."""

    def __init__(self, config: MergeConfig, cell: CellContext) -> None:
        self.config, self.cell = config, cell
        self.loaded = cell.bench.working()
        self.tensors = {OWN: tensors_of(cell.untouched.loaded, OWN)}
        for name, load in cell.inputs.items():
            self.tensors[name] = tensors_of(load(), name)
            _check_alike(name, self.tensors[name], self.tensors[OWN])

    @torch.no_grad()
    def at(self, weight: float, point: Point) -> ModelRespondent:
        """Return the model for a w. It is the same model each time, so only the last one may be asked."""
        made = self._merged(weight)
        for name, parameter in self.loaded.model.named_parameters():
            parameter.copy_(made[name])
        return ModelRespondent(LoadedModel(self.loaded.model, self.loaded.tokenizer, self.cell.name(point)))

    def _merged(self, weight: float) -> dict[str, Tensor]:
        config = self.config
        if config.expression is not None:
            parsed = parse(config.expression, [*config.inputs, OWN], "expression", {FREE: weight})
            used: dict[str, Any] = {name: float(share) for name, share in parsed.weights.items() if share}
            models = {name: self.tensors[name] for name in used}
            return in_memory(models, None, LinearConfig(weight=used, normalize=False), seed=self.cell.seed)
        assert config.merger is not None
        merger = config.merger
        if "scale" in type(merger).model_fields:
            merger = merger.model_copy(update={"scale": weight})
        base = OWN if merger.needs_base or merger.may_have_base else None
        models = {name: own for name, own in self.tensors.items() if base is not None or name != OWN}
        return in_memory(models, base, merger, seed=self.cell.seed)

    def chosen(self) -> tuple[float, list[str]]:
        """Return the w at the end, and notes on how it was chosen. Of equally good ones, the smallest is chosen."""
        if self.config.weight != "search":
            return self.config.weight, []
        found: dict[float, float] = {}
        for weight in self.config.tries:
            scores = self.cell.select(self.at(weight, END))
            found[weight] = sum(scores.values()) / len(scores)
        best = max(found, key=lambda weight: (found[weight], -abs(weight)))
        curve = ", ".join(f"{weight:g}: {value:.3f}" for weight, value in found.items())
        return best, [f"w {best:g} chosen by {', '.join(scores)}: {curve}"]


def tensors_of(loaded: LoadedModel, name: str) -> dict[str, Tensor]:
    """Return a model's parameters by name, on the CPU; an adapter is merged into a copy of its base. Raise ConfigError
    for one that is no change of weights.
    """
    model: Any = loaded.model
    if isinstance(model, PeftModel):
        model = merge_peft(copy.deepcopy(model), name)
    elif added_to(model) is not None:
        cause = "it has something beside its weights, which cannot be added"
        raise ConfigError(Problem(f"inputs: {name}", cause, "name a model, a LoRA adapter or edits"))
    return {key: parameter.detach().cpu() for key, parameter in model.named_parameters()}


def _check_alike(name: str, own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Raise ConfigError if a model has other tensors than the study's own."""
    apart = sorted(own.keys() ^ other.keys())
    if not apart:
        apart = [key for key, tensor in own.items() if tensor.shape != other[key].shape]
    if apart:
        cause = f"it and the study's model differ in {apart[0]} and {len(apart) - 1} more tensors"
        raise ConfigError(Problem(f"inputs: {name}", cause, "merge models of one shape"))
