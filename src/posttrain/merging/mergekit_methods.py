"""Which settings mergekit's methods have, and what they are called in ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

__all__ = ["METHODS", "Kind", "Own"]


class Own(NamedTuple):
    """A setting of ours. ours: its name; default: mergekit's, None if it has none and must be given."""

    ours: str
    default: Any = None


def _as_it_is(made: dict[str, Any]) -> dict[str, Any]:
    return made


class Kind(NamedTuple):
    """A method of mergekit. per_model: settings of each model but the base; shared: of a tensor; plain: of the whole
    merge; unread: settings that have no effect there, or none here, with the value that says nothing; fixed: settings
    of ours; base: first (the first of two models), needed, optional, or ignored (a model like the others).
    """

    per_model: Mapping[str, Own] = {}
    shared: Mapping[str, Own] = {}
    plain: Mapping[str, Own] = {}
    unread: Mapping[str, Any] = {}
    fixed: Mapping[str, Any] = {}
    base: Literal["first", "needed", "optional", "ignored"] = "ignored"
    finish: Callable[[dict[str, Any]], dict[str, Any]] = _as_it_is

    @property
    def parameters(self) -> tuple[str, ...]:
        """All settings that have an effect."""
        return (*self.per_model, *self.shared, *self.plain)


WEIGHT = {"weight": Own("weight")}
LAMBDA = {"lambda": Own("scale", 1.0)}
DENSITY = {**WEIGHT, "density": Own("density", 1.0)}
MERGEKIT = {"compat": "mergekit"}
NO_RESCALE = {"rescale": False}


def _normalized(usual: bool, **more: Own) -> dict[str, Own]:
    return {"normalize": Own("normalize", usual), **more}


def _rowed(made: dict[str, Any]) -> dict[str, Any]:
    whole, by_column = made.pop("flatten"), made.pop("row_wise")
    return {**made, "per": "tensor" if whole else "column" if by_column else "row"}


def _filtered(made: dict[str, Any]) -> dict[str, Any]:
    by_row = made.pop("filter_wise")
    return {**made, "per": "row" if by_row else "tensor"}


RESCALED = Own("rescale", True)
METHODS: Mapping[str, Kind] = {
    "linear": Kind(WEIGHT, plain=_normalized(True)),
    "slerp": Kind(shared={"t": Own("t")}, base="first"),
    "nuslerp": Kind(
        WEIGHT,
        plain={"nuslerp_flatten": Own("flatten", True), "nuslerp_row_wise": Own("row_wise", False)},
        base="optional",
        finish=_rowed,
    ),
    "multislerp": Kind(
        WEIGHT, plain={"normalize_weights": Own("normalize", True)}, unread={"eps": 1e-8}, base="optional"
    ),
    "karcher": Kind(plain={"max_iter": Own("max_iter", 10), "tol": Own("tol", 1e-5)}),
    "task_arithmetic": Kind(
        WEIGHT, LAMBDA, _normalized(False), unread={"density": 1.0, "rescale": False}, base="needed"
    ),
    "ties": Kind(DENSITY, LAMBDA, _normalized(True), NO_RESCALE, MERGEKIT, base="needed"),
    "dare_linear": Kind(DENSITY, LAMBDA, _normalized(False, rescale=RESCALED), fixed=MERGEKIT, base="needed"),
    "dare_ties": Kind(DENSITY, LAMBDA, _normalized(False, rescale=RESCALED), fixed=MERGEKIT, base="needed"),
    "breadcrumbs": Kind(
        {**DENSITY, "gamma": Own("gamma", 0.01)}, LAMBDA, _normalized(False), NO_RESCALE, base="needed"
    ),
    "breadcrumbs_ties": Kind(
        {**DENSITY, "gamma": Own("gamma", 0.01)}, LAMBDA, _normalized(False), NO_RESCALE, MERGEKIT, base="needed"
    ),
    "della": Kind(
        {**DENSITY, "epsilon": Own("epsilon", 0.15)},
        LAMBDA,
        _normalized(True, rescale=RESCALED),
        fixed=MERGEKIT,
        base="needed",
    ),
    "della_linear": Kind(
        {**DENSITY, "epsilon": Own("epsilon", 0.15)},
        LAMBDA,
        _normalized(False, rescale=RESCALED),
        fixed=MERGEKIT,
        base="needed",
    ),
    "model_stock": Kind(
        plain={"filter_wise": Own("filter_wise", False)}, fixed=MERGEKIT, base="needed", finish=_filtered
    ),
    "sce": Kind(shared={"select_topk": Own("select_topk", 1.0)}, fixed=MERGEKIT, base="needed"),
    "nearswap": Kind(shared={"t": Own("t")}, base="first"),
    "arcee_fusion": Kind(base="needed"),
    "ram": Kind(plain={"epsilon": Own("epsilon", 1e-5)}, base="needed"),
    "ramplus_tl": Kind(
        plain={"r": Own("r", 0.1), "alpha": Own("alpha", 0.2), "epsilon": Own("epsilon", 1e-5)}, base="needed"
    ),
    "passthrough": Kind({"scale": Own("scale", 1.0)}),
}
"""mergekit 0.1.5's methods, by its names."""
