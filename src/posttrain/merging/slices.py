"""Models put together of layers of others (frankenmerges): the layers are numbered anew.

What is before the layers comes from the model of the first slice, what is behind them from that of the last one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from posttrain.config.json_text import parse_json
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.merging.methods.passthrough import PassthroughConfig
from posttrain.merging.plan import Misfit, Plan, plan
from posttrain.merging.sources import Source
from posttrain.merging.terms import Term
from posttrain.merging.values import LAYER, Graded, Place, is_embedding, value_of
from posttrain.merging.vocabulary import match_rows
from posttrain.models.tensors import Stored

__all__ = ["Layer", "Sliced", "check_ranges", "config_of", "count_layers", "cut", "marked", "plan_slices"]

COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


class Layer(NamedTuple):
    """A layer of the merged model. model: its name; number: of the layer there; scale: of its numbers; depth: within
    its slice, from 0 to 1.
    """

    model: str
    number: int
    scale: Graded = 1.0
    depth: float = 0.0


class _Origin(NamedTuple):
    source: Source
    name: str
    scale: float


class Sliced:
    """A model of layers of others. sources: by name; before, behind: the layers whose models give what is there."""

    def __init__(self, sources: Mapping[str, Source], layers: Sequence[Layer]) -> None:
        first, last = layers[0], layers[-1]
        found: dict[str, _Origin] = {}
        for name in sources[first.model].tensors:
            if not LAYER.search(name) and is_embedding(name):
                found[name] = _origin(sources, first._replace(depth=0.0), name)
        for number, layer in enumerate(layers):
            for name in sources[layer.model].tensors:
                if (match := LAYER.search(name)) and int(match[1]) == layer.number:
                    new = f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"
                    found[new] = _origin(sources, layer, name, new)
        for name in sources[last.model].tensors:
            if not LAYER.search(name) and not is_embedding(name):
                found[name] = _origin(sources, last._replace(depth=0.0), name)
        self.found = found
        self._tensors = {name: origin.source.tensors[origin.name] for name, origin in found.items()}

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The type and shape of every tensor, by name."""
        return self._tensors

    def rows(self, name: str, first: int, out: Tensor) -> None:
        """Read rows into `out`, as float32."""
        origin = self.found[name]
        origin.source.rows(origin.name, first, out)
        if origin.scale != 1:
            out.mul_(origin.scale)

    def raw(self, name: str, first: int, count: int) -> Any:
        """Return the bytes of numbers of a tensor that is not merged."""
        source: Any = self.found[name].source
        return source.raw(self.found[name].name, first, count)


def _origin(sources: Mapping[str, Source], layer: Layer, name: str, new: str = "") -> _Origin:
    scale = value_of(layer.scale, layer.model, Place(new or name, layer.depth), 1.0)
    return _Origin(sources[layer.model], name, scale)


def count_layers(source: Source) -> int:
    """Return the number of layers of a model."""
    return 1 + max((int(match[1]) for name in source.tensors if (match := LAYER.search(name))), default=-1)


def check_ranges(name: str, ranges: Sequence[Sequence[int]], source: Source) -> None:
    """Raise ConfigError for layers that a model does not have."""
    count = count_layers(source)
    for first, end in ranges:
        if not 0 <= first < end <= count:
            cause = f"the layers {first} to {end} of {name} are not there"
            raise ConfigError(Problem("slices", cause, f"it has {count}: from 0 to {count}"))


def cut(term: Term, name: str, layers: Sequence[int]) -> Term:
    """Return a model with some of its layers, for a merge of the same number of layers of each model."""
    check_ranges(name, [layers], term.source)
    first, end = layers
    if (first, end) == (0, count_layers(term.source)):
        return term
    return term._replace(source=Sliced({name: term.source}, [Layer(name, number) for number in range(first, end)]))


def plan_slices(layers: Sequence[Layer], terms: Mapping[str, Term], **how: Any) -> Plan:
    """Return the plan of a model that is put together of layers. terms: the models, the first slice's first; how:
    options of `plan`. Raise Misfit for layers that are not like those of the first model.
    """
    notes: list[str] = []
    problems: list[Problem] = []
    given = {name: term.source for name, term in terms.items()}
    sources, vocabulary = match_rows(terms, given, how["tokenizer"], how["multiple"], notes, problems)
    first = next(iter(sources))
    kinds = [_kind(sources[first], number) for number in range(count_layers(sources[first]))]
    for layer in layers:
        if _kind(sources[layer.model], layer.number) not in kinds:
            cause = f"layer {layer.number} has other tensors or shapes than those of {first}"
            problems.append(Problem(layer.model, cause, "put together models of one architecture"))
    last = layers[-1].model
    if around(sources[first]) != around(sources[last]):
        cause = f"it has other tensors outside of the layers than {first}"
        problems.append(Problem(last, cause, "end with a slice of a model that is alike"))
    if problems:
        raise Misfit(problems, notes)
    made = terms[first]._replace(source=Sliced(sources, layers))
    found = plan(PassthroughConfig(), {first: made}, base=None, **{**how, "tokenizer": "first", "multiple": None})
    found = marked(found, [list(layer) for layer in layers], [_state(term) for term in terms.values()])
    parts = f"{len(layers)} layers of {', '.join(dict.fromkeys(layer.model for layer in layers))}"
    return found._replace(
        terms=dict(terms),
        what=f"passthrough: {parts}",
        notes=(*notes, *found.notes),
        vocabulary=vocabulary,
        config=config_of(layers, terms),
    )


def marked(found: Plan, *told: Any) -> Plan:
    """Return a plan whose digest depends on more than its models."""
    text = json.dumps([found.merge.digest, told], default=str)
    return found._replace(merge=found.merge._replace(digest=hashlib.sha256(text.encode()).hexdigest()[:16]))


def _state(term: Term) -> list[tuple[str, int, int]]:
    paths = sorted(path for folder in {term.path, term.folder} for path in folder.glob("*.safetensors"))
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _kind(source: Source, number: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of a layer."""
    return {
        name[: match.start(1)] + name[match.end(1) :]: one.shape
        for name, one in source.tensors.items()
        if (match := LAYER.search(name)) and int(match[1]) == number
    }


def around(source: Source) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors outside of the layers."""
    return {name: one.shape for name, one in source.tensors.items() if not LAYER.search(name)}


def config_of(layers: Sequence[Layer], terms: Mapping[str, Term]) -> dict[str, Any]:
    """Return what changes in the configuration of the first model: the number of layers, and lists with a value for
    each. Raise PosttrainError for a configuration that does not say how many layers there are.
    """
    told = {name: _inner(term) for name, term in terms.items()}
    first = next(iter(told.values()))
    key = next((key for key in COUNTS if key in first), None)
    if key is None:
        cause = "its config.json does not say how many layers it has"
        raise PosttrainError(Problem(next(iter(terms)), cause, f"it is looked for under {', '.join(COUNTS)}"))
    changed: dict[str, Any] = {key: len(layers)}
    for name, value in first.items():
        if isinstance(value, list) and "layer" in name and len(value) == first[key]:
            changed[name] = [told[layer.model][name][layer.number] for layer in layers]
    return changed


def _inner(term: Term) -> dict[str, Any]:
    path = term.folder / "config.json"
    config: Any = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, Any] = config.get("text_config", config)
    return found
