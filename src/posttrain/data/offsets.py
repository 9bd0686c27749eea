"""From characters of a text to its tokens, and rows whose tags are tokenised as in a prompt."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["IGNORED", "Start", "as_prompted", "begins_at", "first_token", "token_from"]

IGNORED = -100
"""The label of a token that is not in the loss (PyTorch's cross-entropy and transformers agree on it)."""


class Start(NamedTuple):
    """Where a supervised turn begins: its first token, its first character, and whether that token begins there."""

    token: int
    char: int
    exact: bool


def first_token(encoding: Encoding, char: int) -> int:
    """The first token that ends after a character.

    `char_to_token` is used first, since it needs no list of all offsets; it finds no token for white space that
    byte-level tokenizers remove from their offsets.
    """
    token = encoding.char_to_token(char)
    return bisect_right([end for _, end in encoding.offsets], char) if token is None else token


def token_from(encoding: Encoding, char: int) -> int:
    """The first token that begins at a character or after it."""
    token = encoding.char_to_token(char)
    if token is None or encoding.offsets[token][0] < char:
        return bisect_left([begin for begin, _ in encoding.offsets], char)
    return token


def begins_at(encoding: Encoding | None, token: int, char: int) -> bool:
    """Whether a token is known to begin at a character."""
    return encoding is not None and token < len(encoding.offsets) and encoding.offsets[token][0] == char


def as_prompted(
    ids: Sequence[int], labels: Sequence[int], starts: Sequence[tuple[Start, list[int]]]
) -> tuple[list[int], list[int]] | None:
    """Ids and labels of a row whose tags have the tokens of a prompt, which ends with the tag: GPT-2's tokenizer makes
    one token of two line breaks at the end, and two when words follow.

    starts: of the turns, in order, each with the tokens of the text before it. None when a token spans tag and turn.
    """
    fresh_ids, fresh_labels = list(ids), list(labels)
    for start, prompt in reversed(starts):  # from the end, so that earlier indices stay valid
        row = fresh_ids[: start.token]
        if prompt == row:
            continue
        same = next((i for i, (one, other) in enumerate(zip(prompt, row, strict=False)) if one != other), None)
        same = min(len(prompt), len(row)) if same is None else same
        learned = any(label != IGNORED for label in fresh_labels[same : start.token])
        if not start.exact or (learned and fresh_labels != fresh_ids):
            return None
        tag = prompt[same:]
        fresh_labels[same : start.token] = tag if fresh_labels == fresh_ids else [IGNORED] * len(tag)
        fresh_ids[same : start.token] = tag
    return fresh_ids, fresh_labels
