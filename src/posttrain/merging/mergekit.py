"""Recipes of mergekit (0.1.5), read as they are: each becomes a recipe of ours that gives the same numbers.

A file is one if it has the key `merge_method`. Numbers are computed in float32, whatever its `dtype` says; the model is
stored as `out_dtype` or `dtype`. Rows of vocabularies are matched as in `vocabulary.py`: for a token that one lacks,
the base's row is taken, where mergekit may take the mean of the others', and a union has no ordinary tokens of others.
What mergekit leaves out silently is an error here, such as `normalize:` outside of `parameters:`, a filter that fits no
tensor, or a setting that its method does not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.config.load import KeyPath, by_line, line_of
from posttrain.errors import ConfigError, Problem
from posttrain.merging.mergekit_methods import METHODS, Kind

__all__ = ["is_mergekit", "recipe_of"]

TOP = (
    *("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source"),
    *("tokenizer", "chat_template"),
)
LAYERS = ("layer_range",)
TYPES = ("float32", "bfloat16", "float16")
CHAT = ("chatml", "llama3", "mistral", "alpaca", "exaone")
"""Templates that mergekit brings along."""


class _Input(NamedTuple):
    """A model of a merge. ref: as mergekit calls it; at: where it stands in the file; layers: None for all."""

    ref: str
    at: KeyPath
    layers: tuple[int, int] | None
    parameters: Mapping[str, Any]


class _Slice(NamedTuple):
    """Models that become some layers. at: where its parameters stand."""

    inputs: Sequence[_Input]
    base: str | None
    parameters: Mapping[str, Any]
    at: KeyPath


def is_mergekit(node: Any) -> bool:
    """Return whether a YAML file is a recipe of mergekit."""
    return isinstance(node, Mapping) and "merge_method" in node


def recipe_of(node: Any, name: str) -> dict[str, Any]:
    """Return mergekit's recipe as a tree of ours. name: of the file. Raise ConfigError with the line of every problem:
    unknown keys, settings at a place where mergekit does not read them, and what we do not do, with the reason.
    """
    reader = _Reader(node, name)
    made = reader.recipe()
    if reader.problems:
        raise ConfigError(*by_line(reader.problems))
    return made


class _Reader:
    def __init__(self, node: Any, name: str) -> None:
        self.node, self.name = node, name
        self.problems: list[Problem] = []
        self.names: dict[str, str] = {}  # mergekit's reference -> our name
        self.graded = False

    def wrong(self, at: Sequence[str | int], cause: str, mend: str = "", *, key: bool = False) -> None:
        line = line_of(self.node, at, key=key)
        self.problems.append(Problem(f"{self.name}:{line}" if line else self.name, cause, mend))

    def recipe(self) -> dict[str, Any]:
        node = self.node
        method = node["merge_method"]
        kind = METHODS.get(method) if isinstance(method, str) else None
        if kind is None:
            near = get_close_matches(str(method), METHODS, n=1)
            mend = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(METHODS)}"
            self.wrong(("merge_method",), f"unknown method '{method}'", mend)
            return {}
        if "modules" in node:
            mend = "merge the parts one by one, or write what they have in common under models:"
            self.wrong(("modules",), "modules: models of several parts are not merged part by part", mend, key=True)
            return {}
        self.keys(node, (), TOP, kind)
        slices = self.slices(node, kind)
        if slices is None or self.problems:
            return {}
        base = self.base(slices)
        made = self.stored()
        made |= self.tokenizer(next(iter(self.names), ""))
        made |= self.template()
        made["models"] = {ours: ref for ref, ours in self.names.items()}
        if len(slices) > 1 or (method == "passthrough" and slices[0].inputs[0].layers is not None):
            return made | self.stacked(slices, kind, str(method))
        (only,) = slices
        inputs = self.ordered(only, base, kind, str(method))
        made["method"] = self.method(str(method), kind, only, inputs, base)
        if kind.base in ("needed", "optional") and base is not None:
            made["base"] = self.names[base]
        if any(one.layers for one in inputs):
            made["slices"] = [{"models": {self.names[one.ref]: list(one.layers) for one in inputs if one.layers}}]
        return made | ({"heads_as": "first"} if self.graded else {})

    # ---- structure ---------------------------------------------------------------------------------------------------

    def keys(self, node: Any, at: KeyPath, known: Sequence[str], kind: Kind) -> None:
        """Say which keys of a mapping are unknown."""
        for key in node:
            if key in known:
                continue
            if key in kind.parameters or key == "int8_mask":
                mend = f"write it there: parameters: {{{key}: ...}}"
                self.wrong((*at, key), f"mergekit reads '{key}' under parameters: only, and leaves it out here", mend)
                continue
            near = get_close_matches(str(key), known, n=1)
            mend = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            self.wrong((*at, str(key)), f"unknown key '{key}'", mend, key=True)

    def slices(self, node: Any, kind: Kind) -> list[_Slice] | None:
        if ("models" in node) == ("slices" in node):
            self.wrong((), "give models: or slices:, one of the two")
            return None
        key = "models" if "models" in node else "slices"
        given = node[key]
        if not isinstance(given, list) or not given or not all(isinstance(one, Mapping) for one in given):
            self.wrong((key,), f"{key}: a list of mappings is expected", key=True)
            return None
        if key == "models":
            every = [self.input(one, (key, i), (), kind) for i, one in enumerate(given)]
            return [_Slice([one for one in every if one is not None], None, {}, (key,))]
        made = []
        for i, one in enumerate(given):
            at = (key, i)
            self.keys(one, at, ("sources", "base_model", "parameters"), kind)
            sources = one.get("sources")
            if not isinstance(sources, list) or not sources or not all(isinstance(s, Mapping) for s in sources):
                self.wrong(at, "sources: a list of mappings is expected")
                continue
            found = [self.input(s, (*at, "sources", j), LAYERS, kind) for j, s in enumerate(sources)]
            own = one.get("base_model")
            inputs = [source for source in found if source]
            made.append(_Slice(inputs, own, self.parameters(one, at), (*at, "parameters")))
        return made

    def parameters(self, node: Any, at: KeyPath) -> Mapping[str, Any]:
        given = node.get("parameters")
        if given is not None and not isinstance(given, Mapping):
            self.wrong((*at, "parameters"), "parameters: a mapping (key: value) is expected")
            return {}
        return given or {}

    def input(self, node: Any, at: KeyPath, more: Sequence[str], kind: Kind) -> _Input | None:
        self.keys(node, at, ("model", *more, "parameters"), kind)
        ref = self.reference(node.get("model"), (*at, "model"))
        if ref is None:
            return None
        layers = None
        if more:
            given = node.get("layer_range")
            whole = isinstance(given, list) and len(given) == 2 and all(isinstance(one, int) for one in given)
            if not whole or not 0 <= int(given[0]) < int(given[1]):
                self.wrong(
                    (*at, "layer_range"), f"layer_range: two layers are expected, got {given}", "[first, last+1]"
                )
                return None
            layers = (int(given[0]), int(given[1]))
        return _Input(ref, at, layers, self.parameters(node, at))

    def reference(self, given: Any, at: KeyPath) -> str | None:
        """Return a model's name or folder, after a look whether it is one that we can open. Give it a name of ours."""
        if not isinstance(given, str) or not given:
            self.wrong(at, "a model's name or folder is expected" + ("" if given is None else f", got {given!r}"))
            return None
        ref = str(given)
        if not Path(ref).expanduser().exists():
            if "+" in ref:
                adapter = ref.partition("+")[2]
                mend = f"write {adapter} alone: its adapter_config.json says what its base is"
                self.wrong(at, f"'{ref}': a model and an adapter on it are not written together", mend)
                return None
            if "@" in ref:
                self.wrong(at, f"'{ref}': a revision cannot be chosen here", "download it, and name its folder")
                return None
        if ref not in self.names:
            name = re.sub(r"\W", "_", Path(ref).name.rpartition(":")[2] or "model", flags=re.ASCII)
            name = f"m_{name}" if not name.isidentifier() else name
            taken = set(self.names.values())
            number = next(n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name}_{n}") not in taken)
            self.names[ref] = name if number == 1 else f"{name}_{number}"
        return ref

    def base(self, slices: Sequence[_Slice]) -> str | None:
        """Return the base, and let it be the first model."""
        at: KeyPath = ("base_model",)
        given = self.node.get("base_model")
        for number, one in enumerate(slices):
            if one.base is not None and one.base != given:
                if given is not None or len(slices) > 1:
                    self.wrong(("slices", number, "base_model"), "a slice has no base of its own", "say it at the top")
                    return None
                given, at = one.base, ("slices", number, "base_model")
        base = self.reference(given, at) if given is not None else None
        if base is not None:
            self.names = {base: self.names[base], **{ref: own for ref, own in self.names.items() if ref != base}}
        return base

    def ordered(self, only: _Slice, base: str | None, kind: Kind, method: str) -> list[_Input]:
        """Return the models of a merge, the base first. mergekit adds a base that is not among them."""
        refs = [one.ref for one in only.inputs]
        for number, one in enumerate(only.inputs):
            if one.ref in refs[:number]:
                self.wrong((*one.at, "model"), f"{one.ref} is given twice", "add its two weights")
        if base is None:
            if kind.base in ("needed", "first"):
                self.wrong((), f"{method} needs base_model:", "name the model that the others were made of")
            return list(only.inputs)
        own = next((one for one in only.inputs if one.ref == base), None)
        if own is None:
            layers = only.inputs[0].layers if only.inputs else None
            own = _Input(base, ("base_model",), layers, {})
        return [own, *(one for one in only.inputs if one.ref != base)]

    def stacked(self, slices: Sequence[_Slice], kind: Kind, method: str) -> dict[str, Any]:
        """Return the slices of a model that is put together of layers of others."""
        if method != "passthrough":
            cause = f"{method} of several slices is not done: a model is put together of slices by passthrough alone"
            self.wrong(
                ("slices",), cause, "merge whole models first, then put slices of the results together", key=True
            )
            return {}
        made = []
        for number, one in enumerate(slices):
            if len(one.inputs) != 1 or one.inputs[0].layers is None:
                self.wrong(("slices", number), "passthrough takes one model for each slice", "write a slice for each")
                continue
            source = one.inputs[0]
            scale = self.value("scale", kind.per_model["scale"].default, self.scopes(one, source, kind), None)
            layers = list(source.layers or ())
            made.append({"models": {self.names[source.ref]: layers}, **({} if scale == 1 else {"scale": scale})})
        first = next((self.names[one.inputs[0].ref] for one in slices if one.inputs), None)
        if self.node.get("base_model") and first != next(iter(self.names.values())):
            self.wrong(
                ("base_model",), "the model of the first slice gives configuration and tokenizer", "leave it out"
            )
        return {"slices": made, "method": {"kind": "passthrough"}}

    # ---- parameters --------------------------------------------------------------------------------------------------

    def scopes(self, only: _Slice, one: _Input | None, kind: Kind) -> list[tuple[Mapping[str, Any], KeyPath]]:
        """Return where a setting is looked for: of the model, of the slice, of the whole."""
        found = [(one.parameters, (*one.at, "parameters"))] if one is not None else []
        return [*found, (only.parameters, only.at), (self.parameters(self.node, ()), ("parameters",))]

    def method(
        self, method: str, kind: Kind, only: _Slice, inputs: Sequence[_Input], base: str | None
    ) -> dict[str, Any]:
        aside = base if kind.base in ("needed", "optional") else None
        models = [one for one in inputs if one.ref != aside]
        self.known(kind, only, inputs, aside, method)
        made: dict[str, Any] = {"kind": method, **kind.fixed}
        for key, own in kind.per_model.items():
            values = {
                self.names[one.ref]: self.value(key, own.default, self.scopes(only, one, kind), one) for one in models
            }
            made[own.ours] = values
        for key, own in kind.shared.items():
            made[own.ours] = self.value(key, own.default, self.scopes(only, None, kind), None)
        for key, own in kind.plain.items():
            made[own.ours] = self.plain(key, own.default, self.scopes(only, None, kind))
        return kind.finish(made)

    def known(self, kind: Kind, only: _Slice, inputs: Sequence[_Input], aside: str | None, method: str) -> None:
        """Say which parameters the method does not know, or does not read where they are."""
        whole = [(self.parameters(self.node, ()), ("parameters",)), (only.parameters, only.at)]
        own = [(one.parameters, (*one.at, "parameters"), one.ref == aside) for one in inputs]
        for given, at, is_aside, in_model in [*((*w, False, False) for w in whole), *((*o, True) for o in own)]:
            for key in given:
                if key == "int8_mask":  # it saves memory in mergekit
                    continue
                if key in kind.unread:
                    if given[key] != kind.unread[key]:
                        cause = f"{key}: {method} does not read it in mergekit, or it is not done here"
                        self.wrong((*at, key), cause, f"leave it out, or write {key}: {_shown(kind.unread[key])}")
                elif key not in kind.parameters:
                    near = get_close_matches(str(key), kind.parameters, n=1)
                    names = ", ".join(kind.parameters) or "none"
                    mend = f"did you mean '{near[0]}'?" if near else f"{method} has {names}"
                    self.wrong((*at, str(key)), f"unknown parameter '{key}'", mend, key=True)
                elif in_model and key not in kind.per_model:
                    mend = "write it under parameters: of the whole merge"
                    self.wrong((*at, key), f"mergekit does not read '{key}' for a single model", mend, key=True)
                elif is_aside:
                    self.wrong((*at, key), f"mergekit does not read '{key}' for the base", "leave it out", key=True)

    def value(self, key: str, default: Any, scopes: Sequence[tuple[Mapping[str, Any], KeyPath]], one: Any) -> Any:
        """Return a number, a gradient or filters: the first that fits a tensor counts."""
        found: list[dict[str, Any]] = []
        at: KeyPath = ()
        for given, where in scopes:
            if given.get(key) is not None and not any(each["filter"] == "*" for each in found):
                at = (*where, key)
                found += self.filters(given[key], at)
        if not any(each["filter"] == "*" for each in found):
            if default is None:
                whose = f" of {one.ref}" if one is not None else ""
                left = "for tensors that no filter fits" if found else ""
                mend = "add a last one without a filter: {value: ...}" if found else "write it under parameters:"
                self.wrong(at or (() if one is None else one.at), f"no {key}{whose} {left}".rstrip(), mend)
                return 0.0
            found.append({"filter": "*", "value": default})
        found = found[: next(i for i, each in enumerate(found) if each["filter"] == "*") + 1]
        self.graded |= any(isinstance(each["value"], list) for each in found)
        return found[0]["value"] if len(found) == 1 else found

    def filters(self, given: Any, at: KeyPath) -> list[dict[str, Any]]:
        conditions = given if isinstance(given, list) else [given]
        if not any(isinstance(one, Mapping) for one in conditions):
            return [{"filter": "*", "value": self.number(given, at)}]
        made = []
        for number, one in enumerate(conditions):
            here = (*at, number) if isinstance(given, list) else at
            if not isinstance(one, Mapping) or "value" not in one:
                self.wrong(here, "a filter and a value are expected", "{filter: mlp, value: 0.5}")
                continue
            if more := [key for key in one if key not in ("filter", "value")]:
                near = get_close_matches(str(more[0]), ("filter", "value"), n=1)
                mend = f"did you mean '{near[0]}'?" if near else "known keys: filter, value"
                self.wrong((*here, more[0]), f"unknown key '{more[0]}'", mend, key=True)
            pattern = one.get("filter") or "*"
            if pattern != "*" and any(sign in str(pattern) for sign in "*?["):
                mend = "write a part of the name, such as mlp.up_proj"
                self.wrong((*here, "filter"), f"mergekit's filter '{pattern}' is no pattern: it fits no tensor", mend)
            made.append({"filter": str(pattern), "value": self.number(one["value"], (*here, "value"))})
        return made

    def number(self, given: Any, at: KeyPath) -> Any:
        """Return a number or a list of numbers."""
        if isinstance(given, list) and given:
            return [self.number(one, (*at, number)) for number, one in enumerate(given)]
        try:
            found = float("nan") if isinstance(given, bool | list | None) else float(given)
        except (TypeError, ValueError):
            found = float("nan")
        if not isfinite(found):
            self.wrong(at, f"a number is expected, got {_shown(given)}")
            return 0.0
        return found

    def plain(self, key: str, default: Any, scopes: Sequence[tuple[Mapping[str, Any], KeyPath]]) -> Any:
        """Return a setting that is the same for all tensors."""
        for given, where in scopes:
            if given.get(key) is None:
                continue
            found = given[key]
            if isinstance(found, Mapping | list):
                self.wrong((*where, key), f"{key} is the same for all tensors here", "give one value")
                return default
            if isinstance(default, bool):
                if found not in (True, False):
                    self.wrong((*where, key), f"{key}: true or false is expected, got {_shown(found)}")
                return bool(found)
            number = self.number(found, (*where, key))
            return int(number) if isinstance(default, int) else number
        return default

    # ---- the result --------------------------------------------------------------------------------------------------

    def stored(self) -> dict[str, Any]:
        for key in ("out_dtype", "dtype"):
            if (given := self.node.get(key)) is not None:
                if given not in TYPES:
                    self.wrong((key,), f"{key}: unknown '{given}'", f"one of {', '.join(TYPES)}")
                return {"dtype": str(given)}
        return {}

    def tokenizer(self, first: str) -> dict[str, Any]:
        node = self.node
        if "tokenizer" in node and "tokenizer_source" in node:
            self.wrong(("tokenizer",), "give tokenizer: or tokenizer_source:, one of the two", key=True)
            return {}
        made: dict[str, Any] = {}
        source, at = node.get("tokenizer_source"), ("tokenizer_source",)
        if (given := node.get("tokenizer")) is not None:
            at = ("tokenizer",)
            if not isinstance(given, Mapping):
                self.wrong(at, "tokenizer: a mapping (key: value) is expected", f"tokenizer_source: {given}")
                return {}
            for key in given:
                if key == "tokens":
                    mend = "leave it out: each token has the row of a model that has it"
                    self.wrong((*at, key), "tokens: rows of single tokens are not chosen by hand", mend, key=True)
                elif key not in ("source", "pad_to_multiple_of"):
                    near = get_close_matches(str(key), ("source", "pad_to_multiple_of"), n=1)
                    mend = f"did you mean '{near[0]}'?" if near else "known keys: source, pad_to_multiple_of"
                    self.wrong((*at, key), f"unknown key '{key}'", mend, key=True)
            source = given.get("source", "union")
            if given.get("pad_to_multiple_of") is not None:
                made["pad_to_multiple_of"] = given["pad_to_multiple_of"]
        if source == "union":
            made["tokenizer"] = "union"
        elif source not in (None, "base", first):
            mend = f"write base or union, or make {source} the base" if source in self.names else "write base or union"
            self.wrong(at, f"the merged model has the vocabulary of {first}, not of {source}", mend)
        return made

    def template(self) -> dict[str, Any]:
        given = self.node.get("chat_template")
        if given in (None, "auto"):
            return {}
        if given in self.names:
            return {"template": self.names[given]}
        what = f"mergekit's own '{given}'" if given in CHAT else "a text"
        mend = f"auto, or one of the models: {', '.join(self.names)}"
        self.wrong(("chat_template",), f"chat_template: {what} is not written into a model here", mend)
        return {}


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
