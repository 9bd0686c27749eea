"""Tokenise texts without a template: find where a token begins, and join a text to its continuation.

A text and its continuation get ids that together decode to exactly both texts. When they are tokenised separately, the
second text gets an extra space from SentencePiece's tokenizers (▁) and others. When they are tokenised together, a
token may span the boundary. So:

- if the ids of the whole begin with those of the first text, they are cut there, as lm-eval does;
- else the first text keeps the ids that it has alone, and the second text gets ids that follow them: the first of
  several candidates with which both decode to the whole;
- if no candidate does, the ids of the whole are cut where they differ from those of the first text. The second part
  then begins with the end of the first text, and has all tokens of its own text.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "Tokenizer",
    "as_prompted",
    "begins_at",
    "continued",
    "first_token",
    "join",
    "shared_length",
    "text_of",
    "token_from",
]

Tokenizer: TypeAlias = "PreTrainedTokenizerBase"
"""A tokenizer of transformers. transformers is imported only when a tokenizer is loaded."""
IGNORED = -100
"""The label of a token that is not in the loss. PyTorch's cross-entropy and transformers use the same number."""


class Start(NamedTuple):
    """The start of a supervised turn: the index of its first token, the index of its first character in the text, and
    whether that token begins exactly at that character."""

    token: int
    char: int
    exact: bool


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the length of the common beginning of two sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def first_token(encoding: Encoding, char: int) -> int:
    """Return the index of the first token that ends after a character. `char_to_token` needs no list of all offsets,
    but finds no token for white space that byte-level tokenizers remove from their offsets.
    """
    token = encoding.char_to_token(char)
    return bisect_right([end for _, end in encoding.offsets], char) if token is None else token


def token_from(encoding: Encoding, char: int) -> int:
    """Return the index of the first token that begins at a character or after it."""
    token = encoding.char_to_token(char)
    if token is None or encoding.offsets[token][0] < char:
        return bisect_left([begin for begin, _ in encoding.offsets], char)
    return token


def begins_at(encoding: Encoding | None, token: int, char: int) -> bool:
    """Return whether a token is known to begin at a character."""
    return encoding is not None and token < len(encoding.offsets) and encoding.offsets[token][0] == char


def as_prompted(
    ids: Sequence[int], labels: Sequence[int], starts: Sequence[tuple[Start, list[int]]]
) -> tuple[list[int], list[int]] | None:
    """Return the ids and labels of a row in which the template's tags have the tokens that a prompt gives them.

    A prompt ends with the tag, and some tokens depend on that: GPT-2's tokenizer makes one token of two line breaks at
    the end of a text, and two tokens when words follow. Return None when a token spans tag and turn. starts: the starts
    of the turns, in order, each with the tokens of the text before it.
    """
    fresh_ids, fresh_labels = list(ids), list(labels)
    for start, prompt in reversed(starts):  # from the end, so that earlier indices stay valid
        row = fresh_ids[: start.token]
        if prompt == row:
            continue
        same = shared_length(prompt, row)
        learned = any(label != IGNORED for label in fresh_labels[same : start.token])
        if not start.exact or (learned and fresh_labels != fresh_ids):
            return None
        tag = prompt[same:]
        fresh_labels[same : start.token] = tag if fresh_labels == fresh_ids else [IGNORED] * len(tag)
        fresh_ids[same : start.token] = tag
    return fresh_ids, fresh_labels


NEAR = 8
"""The number of tokens after the boundary that are tried as the start of the second part: only neighbours merge."""
ANCHORS = ("\n", "a", ".", "0", "。")
"""Texts that are put before the second text, so that the tokenizer adds no space to it. The first one that does not
merge with the second text is tried first."""


class Joined(NamedTuple):
    """Token ids of a text and of its continuation."""

    before: list[int]
    after: list[int]


def join(before: list[int], whole: list[int], prompt: str, text: str, tokenizer: Tokenizer) -> Joined:
    """Return the ids of `prompt` and of `text`, given the ids of the prompt (before) and of both together (whole).
    `before` and `whole` must be encoded in the same way.
    """
    before, whole = _without_end(before, whole, text, tokenizer)
    if whole[: len(before)] == before:
        after = whole[len(before) :]
        if not after and text:  # such as two unknown characters, which some tokenizers read as one unknown word
            after = next((way for way in _apart(prompt, text, tokenizer) if way), [])
        return Joined(before, after)
    same = shared_length(before, whole)
    said = text_of(whole, tokenizer)
    likeliest = (whole[at:] for at in range(same, min(len(whole), len(before) + NEAR)))
    for after in itertools.chain(likeliest, _apart(prompt, text, tokenizer)):
        if after and text_of([*before, *after], tokenizer) == said:
            return Joined(before, after)
    return Joined(whole[:same], whole[same:])


def continued(prompt: str, text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a text that follows `prompt`."""
    before, whole = (_bare(part, tokenizer) for part in (prompt, prompt + text))
    return join(before, whole, prompt, text, tokenizer).after


def _apart(prompt: str, text: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the ids of the second text after each text that it does not merge with, and then its ids alone."""
    for anchor in dict.fromkeys((*ANCHORS, prompt[-1:], *prompt.split()[-1:])):
        head, both = _bare(anchor, tokenizer), _bare(anchor + text, tokenizer)
        if both[: len(head)] == head:
            yield both[len(head) :]
    yield _bare(text, tokenizer)


def _without_end(before: list[int], whole: list[int], text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return both lists without the special tokens that the tokenizer adds at the end of every text ([SEP], </s>)."""
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    while before and whole and before[-1] == whole[-1] and before[-1] in ends:
        if text.endswith(str(tokenizer.convert_ids_to_tokens(before[-1]))):
            break
        before, whole = before[:-1], whole[:-1]
    return before, whole


def _bare(text: str, tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def text_of(ids: list[int], tokenizer: Tokenizer) -> str:
    """Return ids as text, special tokens included."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
