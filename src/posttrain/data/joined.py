"""A text and its continuation, without a template: token ids of both, which together decode to exactly both texts.

Tokenised separately, the second text gets an extra space from SentencePiece's tokenizers (▁) and others; tokenised
together, a token may span the boundary, and then the whole does not begin with the ids of the first text. So:

- if the ids of the whole begin with those of the first text, they are cut there, as lm-eval does;
- else the first text keeps the ids that it has alone, which a model sees when it continues the text, and the second one
  gets ids that follow them: of several candidates the first with which both decode to the whole;
- if no candidate does, the ids of the whole are cut where they differ from those of the first text: the second part
  then begins with the end of the first text, and has all tokens of its own text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Joined", "continued", "join"]

NEAR = 8
"""How many tokens after the boundary are tried as the start of the second part: only neighbouring tokens merge."""
ANCHORS = ("\n", "a", ".", "0", "。")
"""Texts put before the second one, so that the tokenizer adds no space; the first one that does not merge with it."""


class Joined(NamedTuple):
    """Token ids of a text and of its continuation."""

    before: list[int]
    after: list[int]


def join(before: list[int], whole: list[int], prompt: str, text: str, tokenizer: PreTrainedTokenizerBase) -> Joined:
    """The ids of `prompt` and `text`, given those of the prompt alone and of both together, encoded in the same way."""
    before, whole = _without_end(before, whole, text, tokenizer)
    if whole[: len(before)] == before:
        after = whole[len(before) :]
        if not after and text:  # such as two unknown characters, which some tokenizers read as one unknown word
            after = next((way for way in _apart(prompt, text, tokenizer) if way), [])
        return Joined(before, after)
    same = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole))
    )
    said = _text(whole, tokenizer)
    for after in _ways(whole, same, len(before), prompt, text, tokenizer):
        if after and _text([*before, *after], tokenizer) == said:
            return Joined(before, after)
    return Joined(whole[:same], whole[same:])


def continued(prompt: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that follows `prompt`."""
    before, whole = (_bare(part, tokenizer) for part in (prompt, prompt + text))
    return join(before, whole, prompt, text, tokenizer).after


def _ways(
    whole: list[int], same: int, length: int, prompt: str, text: str, tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """Candidates for the ids of the second text, the likeliest first."""
    for at in range(same, min(len(whole), length + NEAR)):
        yield whole[at:]
    yield from _apart(prompt, text, tokenizer)


def _apart(prompt: str, text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The ids of the second text after a text that it does not merge with, and alone."""
    for anchor in dict.fromkeys((*ANCHORS, prompt[-1:], *prompt.split()[-1:])):
        head, both = _bare(anchor, tokenizer), _bare(anchor + text, tokenizer)
        if both[: len(head)] == head:
            yield both[len(head) :]
    yield _bare(text, tokenizer)


def _without_end(
    before: list[int], whole: list[int], text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Both without the special tokens that the tokenizer adds at the end of every text ([SEP], </s>)."""
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    while before and whole and before[-1] == whole[-1] and before[-1] in ends:
        if text.endswith(str(tokenizer.convert_ids_to_tokens(before[-1]))):
            break
        before, whole = before[:-1], whole[:-1]
    return before, whole


def _bare(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
