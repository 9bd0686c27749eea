"""Rows of embeddings and heads, matched by token and not by number.

The merged model has the vocabulary of the first model; with `union` also the tokens that were added to the others'. A
row of it is, in each model, that of the same token; where the model lacks the token, the first model's row; and where
that lacks it, too, the row of the first one that has it. So in `zh + (chat - base)` a token that only zh has gets zh's
row, and one that only chat has chat's. Rows without a token (padding) are matched in their order.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from posttrain.config.json_text import parse_json
from posttrain.errors import Problem
from posttrain.merging.sources import KINDS, Source
from posttrain.merging.terms import Term
from posttrain.merging.tokens import Added, Tokens, tokens_in
from posttrain.merging.values import LAYER, is_embedding, is_head
from posttrain.models.tensors import Stored

__all__ = ["Choice", "Matched", "Vocabulary", "is_of_tokens", "match_rows", "rows_of", "tables_in"]

Choice = Literal["first", "union"]
ENCODER = ("cls.predictions.decoder", "cls.predictions.bias")
"""The head of encoders that were trained with masks."""
OTHER = re.compile(r"pos|wpe|type|patch|visual|vision|audio")
"""Of an embedding that is not of tokens."""
FEW = 3
"""Tokens that a message lists."""


class Vocabulary(NamedTuple):
    """The vocabulary of a merged model whose rows are matched by token. rows: of its embedding; ids: of its tokens;
    added: those that the first model lacks; own: the tokens of each model that has a tokenizer; digest: of the match.
    """

    rows: int
    ids: Mapping[str, int]
    added: tuple[Added, ...]
    own: Mapping[str, Tokens]
    digest: str


class Run(NamedTuple):
    """Consecutive rows. first, size: in the merged vocabulary; source: number of the model that has them (-1: none, so
    they are zero); row: of the first one there.
    """

    first: int
    size: int
    source: int
    row: int


class Matched:
    """A model whose vocabulary is that of the merged one. sources: all models; number: of this one; tables: its tensors
    with a row for each token.
    """

    def __init__(self, sources: Sequence[Source], number: int, rows: int, runs: Sequence[Run], tables: Sequence[str]):
        self.sources, self.source, self.runs, self.tables = sources, sources[number], runs, frozenset(tables)
        self.firsts = [run.first for run in runs]
        self._tensors = {
            name: one._replace(shape=(rows, *one.shape[1:])) if name in self.tables else one
            for name, one in self.source.tensors.items()
        }

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The type and shape of every tensor, by name."""
        return self._tensors

    def rows(self, name: str, first: int, out: Tensor) -> None:
        """Read rows into `out`, as float32. Those that follow each other in a model are read at once."""
        if name not in self.tables:
            self.source.rows(name, first, out)
        elif len(self._tensors[name].shape) == 1:  # a bias: one row, with a number for each token
            self._bias(name, out)
        else:
            at = first
            for run in self._within(first, len(out)):
                part = out[at - first : at - first + run.size]
                self._read(run, name, part)
                at += run.size

    def _within(self, first: int, count: int) -> Iterator[Run]:
        """Yield the parts of runs that make up some rows."""
        number = bisect_right(self.firsts, first) - 1
        end = first + count
        while first < end:
            run = self.runs[number]
            skipped = first - run.first
            taken = min(run.size - skipped, end - first)
            yield Run(first, taken, run.source, run.row + skipped)
            first, number = first + taken, number + 1

    def _read(self, run: Run, name: str, out: Tensor) -> None:
        if run.source < 0:
            out.zero_()
        else:
            self.sources[run.source].rows(name, run.row, out)

    def _bias(self, name: str, out: Tensor) -> None:
        read: dict[int, Tensor] = {}
        for run in self.runs:
            if run.source >= 0 and run.source not in read:
                source = self.sources[run.source]
                read[run.source] = torch.empty(1, *source.tensors[name].shape)
                source.rows(name, 0, read[run.source])
            part = out[:, run.first : run.first + run.size]
            if run.source < 0:
                part.zero_()
            else:
                part.copy_(read[run.source][:, run.row : run.row + run.size])

    def raw(self, name: str, first: int, count: int) -> Any:
        """Return the bytes of numbers of a tensor that is not merged; those of a vocabulary are."""
        assert name not in self.tables
        source: Any = self.source
        return source.raw(name, first, count)


class _Model(NamedTuple):
    """What is known of a model's vocabulary. ids: of the tokens that have a row; padded: the rows without a token."""

    name: str
    rows: int
    tables: tuple[str, ...]
    tokens: Tokens | None
    ids: Mapping[str, int]
    padded: Sequence[int]


def rows_of(source: Source, term: Term) -> int | None:
    """Return how many rows the embedding of a model has; None for a model without."""
    path = term.folder / "config.json"
    config: Any = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    said = config.get("text_config", config).get("vocab_size", config.get("vocab_size"))
    found = [one.shape[0] for name, one in source.tensors.items() if len(one.shape) == 2 and is_of_tokens(name)]
    return said if said in found else next(iter(found), None)


def is_of_tokens(name: str) -> bool:
    """Whether a tensor is called as the embedding of tokens is."""
    return (is_embedding(name) or name.startswith("shared.")) and not OTHER.search(name) and not LAYER.search(name)


def _is_head(name: str) -> bool:
    return (is_head(name) or name.startswith(ENCODER)) and not LAYER.search(name)


def tables_in(source: Source, term: Term) -> tuple[str, ...]:
    """Return the tensors that have a row for each token: the embedding, the head, and a head's bias."""
    rows = rows_of(source, term)

    def has(name: str, one: Stored) -> bool:
        if not one.shape or one.shape[0] != rows:
            return False
        return _is_head(name) and name.endswith("bias") if len(one.shape) == 1 else is_of_tokens(name) or _is_head(name)

    return tuple(name for name, one in source.tensors.items() if has(name, one))


def match_rows(
    terms: Mapping[str, Term],
    sources: Mapping[str, Source],
    choice: Choice,
    multiple: int | None,
    notes: list[str],
    problems: list[Problem],
) -> tuple[dict[str, Source], Vocabulary | None]:
    """Return the models with one vocabulary, and that vocabulary; None if they have the same one, and nothing is done.

    terms, sources: the models by name, the first one first; choice: its vocabulary, or the union of all; multiple: of
    which the rows shall be, filled with zeros. What was decided is added to the notes, what does not fit to the
    problems.
    """
    models = [found for name, source in sources.items() if (found := _model(terms[name], name, source)) is not None]
    if not models or models[0].name != next(iter(sources)) or _is_one(models, multiple):
        return dict(sources), None
    first, *others = models
    before = len(problems)
    for other in others:
        _compare(first, other, choice, notes, problems)
    if len(problems) > before:
        return dict(sources), None
    ids, added = _joined(models, choice)
    rows = max(first.rows, max(ids.values(), default=-1) + 1)
    rows = -(-rows // multiple) * multiple if multiple else rows
    kept = [folder / "tokenizer.json" for folder in (terms[first.name].path, terms[first.name].folder)]
    if added and not any(path.is_file() for path in kept):
        mend = "save its tokenizer with AutoTokenizer.from_pretrained(...).save_pretrained(...), or tokenizer: first"
        problems.append(Problem(first.name, "it has no tokenizer.json that tokens could be added to", mend))
    if added:
        notes.append(f"vocabulary: {first.name}'s, and {_few([one.content for one in added])} of others")
    if rows != first.rows:
        notes.append(f"vocabulary: {rows:,} rows, {first.name} has {first.rows:,}")
    digest = hashlib.sha256(repr((rows, added)).encode())
    given = [sources[model.name] for model in models]
    made = dict(sources)
    places = _places(models, ids, rows)
    for number, model in enumerate(models):
        runs = _runs(places, number)
        digest.update(repr(runs).encode())
        same = runs == [Run(0, rows, number, 0)] and rows == model.rows
        made[model.name] = given[number] if same else Matched(given, number, rows, runs, model.tables)
        _check(models, number, runs, given, problems)
    own = {model.name: model.tokens for model in models if model.tokens is not None}
    return made, Vocabulary(rows, ids, tuple(added), own, digest.hexdigest()[:16])


def _model(term: Term, name: str, source: Source) -> _Model | None:
    rows = rows_of(source, term)
    if rows is None:
        return None
    tokens = tokens_in(list(dict.fromkeys((term.path, term.folder))))
    ids = {} if tokens is None else {token: number for token, number in tokens.ids.items() if number < rows}
    known = set(ids.values())
    padded = [row for row in range(rows) if row not in known]
    return _Model(name, rows, tables_in(source, term), tokens, ids, padded)


def _is_one(models: Sequence[_Model], multiple: int | None) -> bool:
    """Whether all models have the same rows for the same tokens. A model without a tokenizer is like the others."""
    if len({model.rows for model in models}) > 1 or (multiple and models[0].rows % multiple):
        return False
    known = [model.ids for model in models if model.tokens is not None]
    return all(ids == known[0] for ids in known[1:])


def _compare(first: _Model, other: _Model, choice: Choice, notes: list[str], problems: list[Problem]) -> None:
    """Say how the vocabulary of a model differs from the first one's."""
    for model in (first, other):
        if model.tokens is None:
            cause = f"{model.name} has no tokenizer, so rows cannot be matched by token ({first.rows:,} rows in "
            cause += f"{first.name}, {other.rows:,} in {other.name})"
            problems.append(Problem(other.name, cause, "put its tokenizer.json into its folder"))
            return
    common = first.ids.keys() & other.ids.keys()
    if 2 * len(common) < min(len(first.ids), len(other.ids)):
        cause = f"it has another tokenizer: {len(common):,} of its {len(other.ids):,} tokens are among the "
        cause += f"{len(first.ids):,} of {first.name}"
        problems.append(Problem(other.name, cause, "merge models that were made of one base"))
        return
    moved = sum(first.ids[token] != other.ids[token] for token in common)
    if moved:
        have = "1 token has another id" if moved == 1 else f"{moved:,} tokens have other ids"
        notes.append(f"{other.name}: {have} than in {first.name}: matched by token")
    if lacks := [token for token in first.ids if token not in common]:
        notes.append(f"{other.name} lacks {_few(lacks)}: {first.name}'s rows stand for them")
    assert other.tokens is not None
    more = [token for token in other.ids if token not in common]
    added = [token for token in more if token in other.tokens.added]
    plain = [token for token in more if token not in other.tokens.added]
    if added and choice == "first":
        notes.append(f"{other.name} added {_few(added)}: left out (tokenizer: union keeps them)")
    if plain:
        notes.append(f"{other.name} has besides {_few(plain)} that {first.name} lacks: left out")


def _few(tokens: Sequence[str]) -> str:
    shown = ", ".join(tokens[:FEW]) + (", ..." if len(tokens) > FEW else "")
    return f"{'1 token' if len(tokens) == 1 else f'{len(tokens):,} tokens'} ({shown})"


def _joined(models: Sequence[_Model], choice: Choice) -> tuple[dict[str, int], list[Added]]:
    """Return the ids of the merged vocabulary, and the tokens that are added to the first model's."""
    first, *others = models
    ids, added = dict(first.ids), []
    every = first.tokens.ids if first.tokens is not None else {}
    free = max(every.values(), default=first.rows - 1) + 1
    for other in others if choice == "union" else ():
        assert other.tokens is not None
        for one in sorted(other.tokens.added.values(), key=lambda one: one.id):
            if one.content not in other.ids or one.content in ids:
                continue
            if one.content in every:  # the first model's tokenizer knows it, though the model has no row for it
                ids[one.content] = every[one.content]
                continue
            added.append(one._replace(id=free))
            ids[one.content] = free
            free += 1
    return ids, added


def _places(models: Sequence[_Model], ids: Mapping[str, int], rows: int) -> list[Tensor]:
    """Return, for each model, the row of it that each row of the merged vocabulary is (-1: it has none)."""
    tokens, at = list(ids), torch.tensor(list(ids.values()), dtype=torch.int64)
    is_padded = torch.ones(rows, dtype=torch.bool)
    is_padded[at] = False
    rank = _ranked(models[0].padded, is_padded)
    places = []
    for model in models:
        own = torch.full((rows,), -1)
        own[at] = torch.tensor([model.ids.get(token, -1) for token in tokens], dtype=torch.int64)
        padded = torch.tensor([*model.padded, -1], dtype=torch.int64)
        own[is_padded] = padded[rank.clamp(max=len(model.padded))]
        places.append(own)
    return places


def _runs(places: Sequence[Tensor], number: int) -> list[Run]:
    """Return where the rows of the merged vocabulary are: in the model itself, else in the first one that has them."""
    source, row = torch.full_like(places[0], -1), torch.full_like(places[0], -1)
    for other in (number, *(other for other in range(len(places)) if other != number)):
        found = (source < 0) & (places[other] >= 0)
        source[found], row[found] = other, places[other][found]
    begins = torch.ones(len(row), dtype=torch.bool)
    begins[1:] = (source[1:] != source[:-1]) | (row[1:] != row[:-1] + (source[1:] >= 0))
    firsts = begins.nonzero().flatten()
    given = (firsts.tolist(), [*firsts[1:].tolist(), len(row)], source[firsts].tolist(), row[firsts].tolist())
    return [Run(first, end - first, model, at) for first, end, model, at in zip(*given, strict=True)]


def _ranked(known: Sequence[int], is_padded: Tensor) -> Tensor:
    """Return the number of each padded row of the merged vocabulary among padded rows: as in the first model, whose
    padded rows are known; those that it does not have follow them.
    """
    rows = is_padded.nonzero().flatten()
    rank = torch.full((len(is_padded) + 1,), -1)
    inside = torch.tensor([row for row in known if row < len(is_padded)], dtype=torch.int64)
    rank[inside] = torch.arange(len(inside))
    found = rank[rows]
    fresh = found < 0
    found[fresh] = len(known) + torch.arange(int(fresh.sum()))
    return found


def _check(
    models: Sequence[_Model], number: int, runs: Sequence[Run], sources: Sequence[Source], problems: list[Problem]
) -> None:
    """Say which rows cannot be read: of tensors that a model lacks which has a token, and of whole numbers."""
    model = models[number]
    for name in model.tables:
        if sources[number].tensors[name].dtype not in KINDS:
            cause = f"{name} is {sources[number].tensors[name].dtype}, and its rows would have to be matched by token"
            problems.append(Problem(model.name, cause, "take a copy of it in bfloat16"))
    lenders = sorted({run.source for run in runs} - {-1, number})
    for lender in lenders:
        for name in set(model.tables) & set(models[0].tables) - set(models[lender].tables):
            cause = f"it lacks {name}, so the rows of its tokens are not known"
            problem = Problem(models[lender].name, cause, "merge with tokenizer: first")
            if problem not in problems:
                problems.append(problem)
