"""Tokens that a model has no embedding for: a tokenizer may know more tokens than the model has rows.

It comes of a token added to the tokenizer ([PAD], tags of a chat) without `resize_token_embeddings`. The padding token
is never read, so any other one will do in its place; a text that holds such a token cannot be read, and is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain.errors import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "keep_padding_inside",
    "outside",
    "padding_inside",
    "rows_in_config",
    "rows_of",
    "without_padding_outside",
]

MEND = "take the token out of the text, or resize the model: model.resize_token_embeddings(len(tokenizer))"


def rows_of(model: Any) -> int:
    """How many tokens a model has embeddings for."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    return rows or rows_in_config(model.config) or 0  # a shard elsewhere holds no rows here


def rows_in_config(config: Any) -> int | None:
    """The same, of a configuration; None where it does not say."""
    found = config.get_text_config().to_dict().get("vocab_size")
    return found if isinstance(found, int) else None


def outside(
    place: str, ids: Sequence[int], rows: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> Problem | None:
    """What is wrong with a text whose ids are not all inside; None where they are."""
    if max(ids, default=0) < rows:
        return None
    beyond = next(i for i in ids if i >= rows)
    name = (
        f"token {tokenizer.convert_ids_to_tokens(beyond)!r} (id {beyond})" if tokenizer is not None else f"id {beyond}"
    )
    return Problem(place, f"holds the {name}, and the model has embeddings for {rows} tokens (0 to {rows - 1})", MEND)


def keep_padding_inside(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Pad with another token where the tokenizer's own is beyond the model's rows, and warn."""
    rows, own = rows_of(model), tokenizer.pad_token_id
    if own is None or own < rows:
        return
    other, was = padding_inside(tokenizer, rows), tokenizer.pad_token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(other)
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = other
    said = f"{name}: the padding token {was!r} has the id {own}, and the model has embeddings for {rows} tokens"
    warnings.warn(f"{said}; {tokenizer.pad_token!r} (id {other}) pads instead", stacklevel=3)


def without_padding_outside(config: Any) -> Any:
    """The configuration, naming no padding where that is beyond the model's rows: torch makes no such embedding."""
    for each in (config, config.get_text_config()):
        named, rows = each.to_dict().get("pad_token_id"), rows_in_config(each)
        if named is not None and rows is not None and named >= rows:
            each.pad_token_id = None
    return config


def padding_inside(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """A token that may pad: the one for beginnings, which no text ends with, else another special one. The end token
    comes last: classifiers read a text's last token that is no padding."""
    first = [tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id]
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    special = sorted({*tokenizer.all_special_ids, *added} - {tokenizer.eos_token_id})
    for token in (*first, *special, tokenizer.eos_token_id):
        if token is not None and token < rows:
            return int(token)
    return 0
