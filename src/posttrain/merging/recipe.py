"""A merge as a file: which models, by which method or expression, and how the result is stored.

```yaml
# posttrain merge skills.yaml --output models/skills
models:
  base: models/base
  math: runs/math/model          # a model, a LoRA adapter or a folder of edits
  code: runs/code/model
expression: base + 0.8*(math - base) + 0.5*(code - base)
```

With a method instead of the expression:

```yaml
models: {base: models/base, math: runs/math/model, code: runs/code/model}
base: base
method: {kind: ties, density: 0.3, weight: {math: 1.0, code: 0.7}}
dtype: bfloat16
```

A recipe of mergekit (`merge_method: ...`) is read as it is, see `mergekit.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.base import ByKind, Config
from posttrain.merging.expression import parse
from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.plan import Missing, Plan, plan, plan_expression
from posttrain.merging.slices import Layer, check_ranges, config_of, cut, marked, plan_slices
from posttrain.merging.terms import Term, open_term
from posttrain.merging.values import Graded
from posttrain.merging.vocabulary import Choice

__all__ = ["Recipe", "planned"]

GB = 10**9


class Slice(Config):
    """Some layers of models, which become layers of the merged one."""

    models: Annotated[dict[str, tuple[int, int]], Field(min_length=1)]
    """The first layer, and the one after the last, of each model: {math: [0, 8]}."""
    scale: Graded = 1.0
    """What their numbers are multiplied by (passthrough of several slices)."""


class Recipe(Config):
    """Models and what becomes of them."""

    SCHEMA: ClassVar[str] = "merge"
    models: Annotated[dict[str, str], Field(min_length=1)]
    """The models by names of your own: a folder, a LoRA adapter's, a folder of edits, pocket:chat, or a hub id."""
    expression: str | None = None
    """A sum of models, such as base + 0.8*(math - base); its weights sum to 1. Or give a method."""
    method: Annotated[MergerConfig, ByKind("merger")] | None = None
    """A method and its settings, such as {kind: ties, density: 0.3}; `posttrain list mergers` names them."""
    base: str | None = None
    """The name of the model that all others were made of; left out: the one that is called base."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """How the merged model is stored; auto: as the first model (the base, where there is one)."""
    missing: Missing = "error"
    """What happens to a tensor that a model lacks: an error, or the first model's is taken (base)."""
    tokenizer: Choice = "first"
    """The vocabulary of the merged model: the first model's, or also the tokens that were added to others' (union)."""
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
    """Let the rows of the embedding be a multiple of this."""
    heads_as: Literal["last", "first"] = "last"
    """Which layer's value of a gradient tensors behind the layers get; mergekit: the first one's."""
    slices: Annotated[list[Slice], Field(min_length=1)] | None = None
    """With passthrough: which layers of which model make up the merged one, in order. With another method, one slice:
    the layers of each model that are merged."""
    template: str | None = None
    """The name of the model whose chat template the merged one gets; left out: of the first one that has a template."""
    shard_gb: Annotated[float, Field(gt=0)] = 5.0
    """Size of a file in GB, at most."""
    seed: int = 0
    """Of random masks."""

    @model_validator(mode="after")
    def _one_way(self) -> Recipe:
        if (self.expression is None) == (self.method is None):
            raise ValueError("give an expression or a method, one of the two")
        if self.expression is not None and self.base is not None:
            raise ValueError("base: an expression needs none, its first model is the first")
        if self.slices is not None:
            self._check_slices(self.slices)
        wrong = [name for name in self.models if not name.isidentifier()]
        if wrong:
            raise ValueError(f"models: '{wrong[0]}' is no name: use letters, digits and _, and no digit first")
        return self

    def _check_slices(self, slices: list[Slice]) -> None:
        if self.method is None:
            raise ValueError("slices: give a method with them, such as passthrough")
        if unknown := [name for one in slices for name in one.models if name not in self.models]:
            raise ValueError(f"slices: unknown model '{unknown[0]}'; known: {', '.join(self.models)}")
        if self.method.kind == "passthrough":
            if any(len(one.models) > 1 for one in slices):
                raise ValueError("slices: passthrough takes one model for each slice")
        elif len(slices) > 1 or slices[0].models.keys() != self.models.keys():
            raise ValueError(f"slices: {self.method.kind} takes one slice, of all models")
        elif len({end - first for first, end in slices[0].models.values()}) > 1:
            raise ValueError("slices: all models need the same number of layers")

    @property
    def based_on(self) -> str | None:
        """The name of the base, None without."""
        if self.base is not None or self.method is None:
            return self.base
        takes = self.method.needs_base or self.method.may_have_base
        return "base" if "base" in self.models and takes else None

    def noted(self) -> dict[str, Any]:
        """Return what merge.json says of it: all settings, also those that were left out, but not where models lie."""
        return self.model_dump(mode="json", exclude={"models"}, exclude_none=True)


def planned(recipe: Recipe, *, location: str = "expression", offline: bool = True, **terms: Term) -> Plan:
    """Return the plan of a recipe. location: of the expression, for errors; terms: models that are open already, by
    their names. Raise the errors of `open_term`, `parse` and `plan`.
    """
    how: dict[str, Any] = {
        "dtype": recipe.dtype,
        "missing": recipe.missing,
        "shard": round(recipe.shard_gb * GB),
        "seed": recipe.seed,
        "tokenizer": recipe.tokenizer,
        "multiple": recipe.pad_to_multiple_of,
        "behind": float(recipe.heads_as == "last"),
    }
    if recipe.expression is not None:
        expression = parse(recipe.expression, list(recipe.models), location)
        used = {name: recipe.models[name] for name in expression.weights}
        opened = {name: terms.get(name) or open_term(model, offline=offline) for name, model in used.items()}
        return plan_expression(expression, opened, **how)
    assert recipe.method is not None
    opened = {name: terms.get(name) or open_term(model, offline=offline) for name, model in recipe.models.items()}
    if recipe.slices is not None and recipe.method.kind == "passthrough":
        return plan_slices(_layers(recipe.slices, opened), _from(recipe.slices, opened), **how)
    if recipe.slices is not None:
        (only,) = recipe.slices
        parts = {name: cut(term, name, only.models[name]) for name, term in opened.items()}
        made = plan(recipe.method, parts, base=recipe.based_on, **how)
        if all(parts[name] is opened[name] for name in parts):
            return made
        first = next(iter(made.terms))
        layers = [Layer(first, number) for number in range(*only.models[first])]
        return marked(made, only.models)._replace(config=config_of(layers, made.terms))
    return plan(recipe.method, opened, base=recipe.based_on, **how)


def _layers(slices: Sequence[Slice], terms: Mapping[str, Term]) -> list[Layer]:
    """Return the layers of a model that is put together of slices."""
    layers: list[Layer] = []
    for one in slices:
        ((name, (first, end)),) = one.models.items()
        check_ranges(name, [(first, end)], terms[name].source)
        last = end - first - 1
        layers += [Layer(name, first + at, one.scale, at / last if last else 1.0) for at in range(last + 1)]
    return layers


def _from(slices: Sequence[Slice], terms: Mapping[str, Term]) -> dict[str, Term]:
    """Return the models that slices name, in their order."""
    return {name: terms[name] for one in slices for name in one.models}
