"""Characters of a text to the tokens that stand for them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["first_token", "token_from"]


def first_token(encoding: Encoding, char: int) -> int:
    """The first token that ends after a character.

    `char_to_token` finds it without making a list of all offsets; it knows no token for white space that byte-level
    tokenizers trim from their offsets.
    """
    token = encoding.char_to_token(char)
    return bisect_right([end for _, end in encoding.offsets], char) if token is None else token


def token_from(encoding: Encoding, char: int) -> int:
    """The first token that begins at a character or after it."""
    token = encoding.char_to_token(char)
    if token is None or encoding.offsets[token][0] < char:
        return bisect_left([begin for begin, _ in encoding.offsets], char)
    return token
