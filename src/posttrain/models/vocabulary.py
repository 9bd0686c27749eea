"""Record what a tokenizer does not know of its model: which tokens have an embedding, and where generation stops.

A tokenizer knows more tokens than the model's embedding has rows if a token ([PAD], tags of a chat) was added to it
without `resize_token_embeddings`. The pad token is never read, so another token replaces it in memory; saved files name
the original one (`own_padding`). A text with such a token cannot be used, and is reported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from posttrain.errors import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "keep_padding_inside",
    "keep_stops",
    "outside",
    "own_padding",
    "pad_alike",
    "pad_with",
    "padding_inside",
    "padding_of_files",
    "rows_in_config",
    "rows_of",
    "stops_of",
    "without_padding_outside",
]

MEND = "take the token out of the text, or resize the model: model.resize_token_embeddings(len(tokenizer))"


def rows_of(model: Any) -> int:
    """Return how many tokens a model has embeddings for."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    return rows or rows_in_config(model.config) or 0  # the matrix has 0 rows if they are sharded to other processes


def rows_in_config(config: Any) -> int | None:
    """Return how many tokens have embeddings according to a configuration; None if it does not say."""
    found = config.get_text_config().to_dict().get("vocab_size")
    return found if isinstance(found, int) else None


def outside(
    location: str, ids: Sequence[int], rows: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> Problem | None:
    """Return the problem of a text that has ids of `rows` or more; None if it has none."""
    if max(ids, default=0) < rows:
        return None
    beyond = next(i for i in ids if i >= rows)
    name = f"id {beyond}"
    if tokenizer is not None:
        name = f"token {tokenizer.convert_ids_to_tokens(beyond)!r} (id {beyond})"
    cause = f"holds the {name}, and the model has embeddings for {rows} tokens (0 to {rows - 1})"
    return Problem(location, cause, MEND)


class StandIn(NamedTuple):
    """The pad token that is used in memory instead of the files' own. `own` is the tokenizer file's pad token. `named`
    holds the pad ids in the model's configurations.
    """

    token: str
    own: str | None
    named: tuple[int | None, ...] = ()


_stand_ins: WeakKeyDictionary[PreTrainedTokenizerBase, StandIn] = WeakKeyDictionary()


def pad_with(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    """Use a token as the pad token from now on, in memory only."""
    before = _stand_ins.get(tokenizer, StandIn(token, tokenizer.pad_token))
    tokenizer.pad_token = token
    _stand_ins[tokenizer] = before._replace(token=token)


def pad_alike(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a model's configurations name the pad token that the tokenizer has in memory."""
    config, text, *generation = _naming_padding(model)
    found = _stand_ins.get(tokenizer)
    if found is not None and not found.named:
        named = tuple(part.to_dict().get("pad_token_id") for part in (config, text, *generation))
        _stand_ins[tokenizer] = found._replace(named=named)
    for part in (config, *generation):
        part.pad_token_id = tokenizer.pad_token_id


def _naming_padding(model: Any) -> list[Any]:
    """Return the configurations that name the pad token: the model's, its text part, and that of generation."""
    generation = model.generation_config if model.can_generate() else None
    return [model.config, model.config.get_text_config(), *([generation] if generation is not None else [])]


def padding_of_files(tokenizer: PreTrainedTokenizerBase) -> StandIn | None:
    """Return the pad tokens that the files name if another one is used in memory; None if the files' own is used."""
    found = _stand_ins.get(tokenizer)
    return found if found is not None and tokenizer.pad_token == found.token else None


@contextmanager
def own_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Within this block, model and tokenizer name the pad token of their files, so that they are saved with it."""
    found = padding_of_files(tokenizer)
    if found is None:
        yield
        return
    parts = _naming_padding(model)
    before = [part.to_dict().get("pad_token_id") for part in parts]
    tokenizer.pad_token = found.own
    for part, named in zip(parts, found.named, strict=False):  # `named` is empty for a model that was not loaded
        part.pad_token_id = named
    try:
        yield
    finally:
        tokenizer.pad_token = found.token
        for part, named in zip(parts, before, strict=True):
            part.pad_token_id = named


def keep_padding_inside(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Use another pad token, and warn, if the tokenizer's pad token has no row in the model's embedding."""
    rows, own = rows_of(model), tokenizer.pad_token_id
    if own is None or own < rows:
        return
    other, was = padding_inside(tokenizer, rows), tokenizer.pad_token
    pad_with(tokenizer, str(tokenizer.convert_ids_to_tokens(other)))
    pad_alike(model, tokenizer)
    model.config.get_text_config().pad_token_id = other
    said = f"{name}: the padding token {was!r} has the id {own}, and the model has embeddings for {rows} tokens"
    warnings.warn(f"{said}; {tokenizer.pad_token!r} (id {other}) pads instead", stacklevel=3)


def without_padding_outside(config: Any) -> Any:
    """Return the configuration without a pad token that has no row, because torch cannot make such an embedding."""
    for each in (config, config.get_text_config()):
        named, rows = each.to_dict().get("pad_token_id"), rows_in_config(each)
        if named is not None and rows is not None and named >= rows:
            each.pad_token_id = None
    return config


def padding_inside(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """Return the id of a token to pad with. It is the token for beginnings, which no text ends with, else another
    special token. The end token comes last, because classifiers look for a text's last token that is not padding.
    """
    first = [tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id]
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    special = sorted({*tokenizer.all_special_ids, *added} - {tokenizer.eos_token_id})
    candidates = (*first, *special, tokenizer.eos_token_id)
    return next((int(token) for token in candidates if token is not None and token < rows), 0)


_stops: WeakKeyDictionary[PreTrainedTokenizerBase, frozenset[int]] = WeakKeyDictionary()


def keep_stops(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> None:
    """Store the ids at which the generation of the tokenizer's model stops."""
    _stops[tokenizer] = frozenset(ids)


def stops_of(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the stored stop ids; empty for a tokenizer that was loaded without a model."""
    return _stops.get(tokenizer, frozenset())
