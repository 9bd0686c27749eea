"""`pt.merge`: add, subtract and average models on disk, and load what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import InstanceOf

from posttrain.config.load import check
from posttrain.errors import ConfigError, Problem
from posttrain.library.models import Count, Model, as_arguments, load
from posttrain.merging.recipe import Recipe, planned
from posttrain.merging.write import write_merge

__all__ = ["merge"]


@as_arguments
def merge(
    expression: str | None = None,
    models: Mapping[str, InstanceOf[Model] | str | Path] | None = None,
    *,
    output: str | Path,
    method: str | Mapping[str, Any] | None = None,
    base: str | None = None,
    threads: Count | None = None,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Model:
    """Merge models into a folder, from file to file, and load it.

    expression: a sum such as "base + 0.8*(math - base)", or None with `method`, a name (see `posttrain list mergers`)
    or a mapping such as {"kind": "ties", "density": 0.3}; models: name -> folder, adapter's folder, folder of edits,
    pocket:chat, or a model that was loaded from one; output: the folder; base: the name of the base of a method;
    threads: all cores if None; say: takes lines for the user; settings: those of a recipe, such as `dtype="bfloat16"`.
    Raise ConfigError for an expression, a method or a setting that is wrong, and PosttrainError for models that do not
    fit.
    """
    named = {name: _name_of(name, model) for name, model in (models or {}).items()}
    node: dict[str, Any] = {"models": named, **settings}
    node |= {key: value for key, value in (("expression", expression), ("method", method), ("base", base)) if value}
    recipe = check(node, Recipe, "pt.merge")
    plan = planned(recipe)
    for note in plan.notes:
        say(note)
    write_merge(plan, Path(output), recipe=recipe.noted(), template=recipe.template, threads=threads, say=say)
    return load(output)


def _name_of(name: str, model: Model | str | Path) -> str:
    """Return the name or folder of a model. Raise ConfigError for one that is in memory alone."""
    if not isinstance(model, Model):
        return str(model)
    where = str(model.folder or model.model.name_or_path)
    if not where or (model.folder is None and model.cost):
        cause = "it is in memory alone, and merging reads files"
        raise ConfigError(Problem(f"models: {name}", cause, "save it first, and give its folder"))
    return where
