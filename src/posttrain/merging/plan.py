"""What a merge will do, decided from the headers of the files alone: every tensor, every file, and why.

The first model (the base, where the method has one) says which tensors there are, and in what types and order. Rules:

    a tensor that another model lacks      an error; with `missing: base`, the first model's is taken
    a head that a model shares with its embedding    its embedding stands for it
    a tensor that only another model has   left out, and said; an untied head that would be lost is an error
    a shape that differs                   an error; rows of a vocabulary are matched by token (`vocabulary.py`)
    a type that cannot be added (integers) it must be the same in all models
    several types                          numbers are added in float32, and stored in the first model's type or `dtype`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Literal, NamedTuple

from posttrain import __version__, registry
from posttrain.config.json_text import parse_json
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.merging.engine import Job, Merge
from posttrain.merging.expression import Expression
from posttrain.merging.layout import SHARD, lay_out
from posttrain.merging.methods._base import MergerConfig
from posttrain.merging.methods.linear import LinearConfig
from posttrain.merging.sources import KINDS, Source
from posttrain.merging.terms import Term
from posttrain.merging.values import PerModel, fits, is_head, patterns_of, place_of
from posttrain.merging.vocabulary import Choice, Vocabulary, is_of_tokens, match_rows, tables_in
from posttrain.models.tensors import SIZES, Stored

__all__ = ["STORED", "Misfit", "Missing", "Plan", "plan", "plan_expression"]

Missing = Literal["error", "base"]
STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Types that a merged model can be stored in -> safetensors' names."""
FEW = 3
"""Names that a message lists."""


class Misfit(PosttrainError):
    """Models do not fit each other. decided: what was decided of them all the same, for people."""

    def __init__(self, problems: Sequence[Problem], decided: Sequence[str]) -> None:
        super().__init__(*problems)
        self.decided = tuple(decided)


class Plan(NamedTuple):
    """A merge that is ready to run. merge: what the engine does; terms: the models by name, the first one first; what:
    the method or the expression, in words; notes: what was decided, for people; reads, writes: bytes; vocabulary: None
    if all models have the same one; config: what changes in the first model's configuration.
    """

    merge: Merge
    terms: Mapping[str, Term]
    what: str
    notes: tuple[str, ...]
    reads: int
    writes: int
    vocabulary: Vocabulary | None = None
    config: Mapping[str, Any] = {}

    @property
    def first(self) -> Term:
        """The model that says which tensors there are, and gives the configuration."""
        return next(iter(self.terms.values()))


def plan_expression(expression: Expression, terms: Mapping[str, Term], **how: Any) -> Plan:
    """Return the plan of an expression: a weighted sum whose weights are multiplied out. how: options of `plan`."""
    used = {name: terms[name] for name, weight in expression.weights.items() if weight} or dict(terms)
    weights: dict[str, Any] = {name: float(expression.weights[name]) for name in used}
    made = plan(LinearConfig(weight=weights, normalize=False), used, base=None, **how)
    return made._replace(what=f"{expression.text} = {expression.explained()}")


def plan(
    config: MergerConfig,
    terms: Mapping[str, Term],
    *,
    base: str | None,
    dtype: str = "auto",
    missing: Missing = "error",
    shard: int = SHARD,
    seed: int = 0,
    tokenizer: Choice = "first",
    multiple: int | None = None,
    behind: float = 1.0,
) -> Plan:
    """Return the plan of a merge by a method.

    terms: the models by name; base: the name of the one that all others were made of; dtype: how the merged model is
    stored, auto as the first one; missing: see the module; shard: bytes of a file, at most; seed: of random masks;
    tokenizer: whose vocabulary it has; multiple: of which its rows shall be; behind: depth of what is behind the
    layers.
    Raise ConfigError for a number of models that the method does not take, for settings of models that are not there
    and filters that fit no tensor, and PosttrainError (a Misfit) with all tensors that do not fit.
    """
    ordered = _ordered(config, terms, base)
    sources = {name: term.source for name, term in ordered.items()}
    notes: list[str] = []
    problems: list[Problem] = []
    own = next(iter(sources.values()))
    tied = {name: _untied(name, source, own, ordered[name], notes) for name, source in sources.items()}
    ready, vocabulary = match_rows(ordered, tied, tokenizer, multiple, notes, problems)
    one, first = next(iter(ready.items()))
    tensors = _stored(one, first.tensors, dtype)
    unmatched = tables_in(first, ordered[one]) if problems else ()
    for name in list(ready)[1:]:
        ready[name] = _fitted(name, ready[name], first, ordered, missing, notes, problems, unmatched)
    if problems:
        raise Misfit(problems, notes)
    notes += _types(ready, tensors)
    places = place_of(list(tensors), behind)
    _check_settings(config, [name for name in ordered if name != base], list(tensors))
    jobs = [Job(name, stored, places[name], stored.dtype not in KINDS) for name, stored in tensors.items()]
    layout = lay_out(tensors, shard)
    models = {name: source for name, source in ready.items() if name != base}
    function = registry.load("merger", config.kind).function
    merge = Merge(models, ready[base] if base else None, function, config, jobs, layout, seed, "")
    read = sum(_size(one) for source in sources.values() for one in source.tensors.values())
    digest = _digest(merge, ordered, base, "" if vocabulary is None else vocabulary.digest)
    merge = merge._replace(digest=digest)
    return Plan(merge, ordered, config.kind, tuple(notes), read, layout.size, vocabulary)


def _ordered(config: MergerConfig, terms: Mapping[str, Term], base: str | None) -> dict[str, Term]:
    """Return the models with the base first. Raise ConfigError for too few or too many."""
    kind = config.kind
    if base is not None and base not in terms:
        raise ConfigError(Problem("base", f"unknown name '{base}'", f"known: {', '.join(terms)}"))
    if config.needs_base and base is None:
        mend = "name one of them base: base=FOLDER, or say it: --base NAME"
        raise ConfigError(Problem(kind, "it needs the model that all others were made of", mend))
    if base is not None and not (config.needs_base or config.may_have_base):
        raise ConfigError(Problem(kind, "it has no use for a base", "leave it out, or merge it like the others"))
    count = len(terms) - (base is not None)
    most = config.models_at_most
    if count < config.models_at_least or (most is not None and count > most):
        wanted = f"{config.models_at_least}" if most == config.models_at_least else f"at least {config.models_at_least}"
        wanted += " model" if wanted == "1" or wanted.endswith(" 1") else " models"
        beside = " beside the base" if base is not None else ""
        raise ConfigError(
            Problem(
                kind,
                f"it merges {wanted}{beside}, and {count} {'is' if count == 1 else 'are'} given",
                "see posttrain list mergers",
            )
        )
    return {name: terms[name] for name in sorted(terms, key=lambda name: name != base)}


def _check_settings(config: MergerConfig, names: Sequence[str], tensors: Sequence[str]) -> None:
    """Raise ConfigError for a setting of a model that is not there, and for a filter that fits no tensor."""
    for key in type(config).model_fields:
        value: PerModel | Any = getattr(config, key)
        if isinstance(value, dict) and (unknown := [name for name in value if name not in names]):
            mend = f"known: {', '.join(names)}"
            raise ConfigError(Problem(f"{config.kind}: {key}", f"unknown model '{unknown[0]}'", mend))
        if not isinstance(value, dict | list):
            continue
        for pattern in patterns_of(value):
            if not any(fits(pattern, name) for name in tensors):
                mend = f"tensors are called like {tensors[len(tensors) // 2]}"
                raise ConfigError(Problem(f"{config.kind}: {key}", f"the filter '{pattern}' fits no tensor", mend))


def _stored(name: str, tensors: Mapping[str, Stored], dtype: str) -> dict[str, Stored]:
    """Return the types and shapes of the merged model's tensors. Raise ConfigError for an unknown type to store, and
    PosttrainError for tensors of a type that is not known.
    """
    if unknown := [tensor for tensor, one in tensors.items() if one.dtype not in SIZES]:
        cause = f"{unknown[0]} is {tensors[unknown[0]].dtype}: numbers that cannot be added"
        raise PosttrainError(Problem(name, cause, "convert it to bfloat16"))
    if dtype != "auto" and dtype not in STORED:
        raise ConfigError(Problem("dtype", f"unknown '{dtype}'", f"one of auto, {', '.join(STORED)}"))
    return {
        name: Stored(one.dtype if dtype == "auto" or one.dtype not in KINDS else STORED[dtype], one.shape)
        for name, one in tensors.items()
    }


class Aliased:
    """A model in which some tensors stand under other names, too."""

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self.source, self.names = source, names
        own = source.tensors
        self.tensors: Mapping[str, Stored] = {**own, **{name: own[other] for name, other in names.items()}}

    def rows(self, name: str, first: int, out: Any) -> None:
        """Read rows into `out`, as float32."""
        self.source.rows(self.names.get(name, name), first, out)

    def raw(self, name: str, first: int, count: int) -> Any:
        """Return the bytes of numbers of a tensor."""
        source: Any = self.source
        return source.raw(self.names.get(name, name), first, count)


class Filled:
    """A model that takes the tensors that it lacks from another one."""

    def __init__(self, source: Source, other: Source) -> None:
        self.source, self.other = source, other
        self.tensors: Mapping[str, Stored] = {**other.tensors, **source.tensors}

    def _of(self, name: str) -> Any:
        return self.source if name in self.source.tensors else self.other

    def rows(self, name: str, first: int, out: Any) -> None:
        """Read rows into `out`, as float32."""
        self._of(name).rows(name, first, out)

    def raw(self, name: str, first: int, count: int) -> Any:
        """Return the bytes of numbers of a tensor."""
        return self._of(name).raw(name, first, count)


def _fitted(
    name: str,
    source: Source,
    first: Source,
    terms: Mapping[str, Term],
    missing: Missing,
    notes: list[str],
    problems: list[Problem],
    unmatched: Sequence[str],
) -> Source:
    """Return a model as it is read beside the first one. What was decided is added to the notes, what does not fit to
    the problems, but for the tensors of a vocabulary that was not matched.
    """
    one, other = next(iter(terms)), terms[name]
    lacks = [tensor for tensor in first.tensors if tensor not in source.tensors]
    if lacks and missing == "base":
        notes.append(f"{name} lacks {_few(lacks)}: taken from {one}")
        source = Filled(source, first)
    elif lacks:
        mend = f"merge models of one kind, or take what is missing from {one}: missing: base"
        problems.append(Problem(name, f"it lacks {_few(lacks)}", mend))
    for tensor, stored in first.tensors.items():
        found = source.tensors.get(tensor)
        if found is not None and found.shape != stored.shape and tensor not in unmatched:
            cause = f"{tensor} is {_shape(found)}, and {_shape(stored)} in {one}"
            problems.append(Problem(name, cause, "merge models of one shape"))
        elif found is not None and (found.dtype in KINDS) != (stored.dtype in KINDS):
            problems.append(
                Problem(name, f"{tensor} is {found.dtype}, and {stored.dtype} in {one}", "convert one of them")
            )
    more = [tensor for tensor in source.tensors if tensor not in first.tensors]
    apart = [] if _is_tied(other) or not _is_tied(terms[one]) else [tensor for tensor in more if is_head(tensor)]
    if apart:
        cause = f"its head {apart[0]} is apart from its embedding, and in {one} the two are one"
        problems.append(Problem(name, cause, f"name {name} first, so that the merged model has a head of its own"))
    elif more:
        notes.append(f"{name} has {_few(more)} besides: left out")
    return source


def _untied(name: str, source: Source, first: Source, term: Term, notes: list[str]) -> Source:
    """Return a model in which its embedding stands for a head that the first model has, if its own is tied."""
    lacks = [tensor for tensor in first.tensors if tensor not in source.tensors]
    if not lacks or not _is_tied(term):
        return source
    heads = [tensor for tensor in lacks if is_head(tensor)]
    twins = {head: twin for head in heads if (twin := _embedding(source, first.tensors[head])) is not None}
    if not twins:
        return source
    notes.append(f"{name} has its head tied: its embedding stands for {_few(list(twins))}")
    return Aliased(source, twins)


def _types(sources: Mapping[str, Source], tensors: Mapping[str, Stored]) -> list[str]:
    """Say in which types the models are stored, where they are not alike."""
    held = {name: {source.tensors[one].dtype for one in tensors} for name, source in sources.items()}
    wanted = {stored.dtype for stored in tensors.values()}
    if all(own == wanted for own in held.values()):
        return []
    said = ", ".join(f"{name} {'/'.join(sorted(own))}" for name, own in held.items())
    return [f"types: {said}; added in F32 and stored as {'/'.join(sorted(wanted))}"]


def _is_tied(term: Term) -> bool:
    """Whether a model's head is its embedding. Configurations leave out what is usual for their kind; then the files
    say it."""
    path = term.folder / "config.json"
    config: Any = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    inner = config.get("text_config", config)
    said = inner.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return not any(map(is_head, term.source.tensors)) if said is None else bool(said)


def _embedding(source: Source, head: Stored) -> str | None:
    """Return the tensor that a head is tied to: the first one as wide that is called an embedding of tokens. Its rows
    may be others, as they are matched by token.
    """
    width = head.shape[1:]
    return next((n for n, one in source.tensors.items() if width and one.shape[1:] == width and is_of_tokens(n)), None)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _shape(stored: Stored) -> str:
    return " x ".join(map(str, stored.shape)) or "a number"


def _size(one: Stored) -> int:
    return SIZES.get(one.dtype, 1) * prod(one.shape)


def _digest(merge: Merge, terms: Mapping[str, Term], base: str | None, vocabulary: str) -> str:
    """Return a hash of all that decides the result: the settings, and the size and time of every file."""
    told = [
        [__version__, merge.config.model_dump(mode="json"), merge.seed, base, vocabulary],
        [[name, str(term.folder), _files(term)] for name, term in terms.items()],
        [[job.name, job.stored.dtype, list(job.stored.shape), job.place.depth] for job in merge.jobs],
        [[file.name, file.size] for file in merge.layout.files],
    ]
    return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()[:16]


def _files(term: Term) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    for folder in dict.fromkeys((*term.parents, term.folder, term.path)):
        for path in sorted((*folder.glob("*.safetensors"), *folder.glob("adapter_config.json"))):
            state = path.stat()
            found.append((path.name, state.st_size, state.st_mtime_ns))
    return found
