"""Encode plain text as lm-eval 0.4.13 does: split it into context and continuation, and cut it into windows.

    pair      Spaces at the context's end move to the continuation. The whole is encoded and cut after the context's
              tokens (lm_eval/api/model.py, `_encode_pair`). An empty context is the prefix token. Where a token spans
              the border, lm-eval still cuts at the context's length, and scores only a part of the continuation, or
              nothing; here the continuation keeps its own tokens (`data/tokens.py`).
    rolling   One prefix token, then windows of the model's context. Only the last window looks back
              (`loglikelihood_rolling`).
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

from posttrain.data.tokens import join
from posttrain.errors import PosttrainError

__all__ = ["TokenPair", "cut_left", "encode_plain", "move_spaces", "plain_pair", "prefix_token", "rolling_windows"]


class TokenPair(NamedTuple):
    """Token ids of a context (at least one) and of the text that is scored after it."""

    context: list[int]
    continuation: list[int]


def prefix_token(tokenizer: Any) -> int:
    """Return the token before the first one of a document: bos, or eos if there is no bos. Raise PosttrainError if the
    tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise PosttrainError("the tokenizer has neither bos nor eos: nothing can stand before an empty context")


def encode_plain(text: str, tokenizer: Any) -> list[int]:
    """Return ids with the tokenizer's own special tokens. If the text begins with bos, no second one is added."""
    bos = tokenizer.decode(prefix_token(tokenizer))
    return tokenizer.encode(text, **({"add_special_tokens": False} if bos and text.startswith(bos) else {}))


def plain_pair(
    context: str, continuation: str, tokenizer: Any, coded: MutableMapping[str, list[int]] | None = None
) -> TokenPair:
    """Return a context and its continuation as ids. `coded` holds contexts that are already encoded, because the
    choices of a question share one.
    """
    if not context:
        ids: list[int] = tokenizer.encode(continuation, add_special_tokens=False)
        prefix = prefix_token(tokenizer)
        return TokenPair([ids[0]], ids[1:]) if ids[:1] == [prefix] else TokenPair([prefix], ids)
    context, continuation = move_spaces(context, continuation)
    known: MutableMapping[str, list[int]] = {} if coded is None else coded
    if context not in known:
        known[context] = encode_plain(context, tokenizer)
    whole = encode_plain(context + continuation, tokenizer)
    joined = join(known[context], whole, context, continuation, tokenizer)
    return TokenPair(joined.before or [prefix_token(tokenizer)], joined.after)


def move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Move spaces at the context's end to the continuation, and return both."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def cut_left(pair: TokenPair, limit: int) -> TokenPair:
    """Return the pair without tokens more than `limit` positions before its last token, as in lm-eval."""
    whole = [*pair.context, *pair.continuation][-(limit + 1) :]
    kept = min(len(pair.continuation), len(whole) - 1)
    return TokenPair(whole[: len(whole) - kept], whole[len(whole) - kept :])


def rolling_windows(ids: Sequence[int], prefix: int, limit: int) -> Iterator[TokenPair]:
    """Yield windows of `limit` tokens, in which each token is scored once.

    The first window follows the prefix token, and each next one follows the last token of the window before it. The
    last window, which is shorter, follows as many tokens as fit (`get_rolling_token_windows`).
    """
    for start in range(0, len(ids), limit):
        part = list(ids[start : start + limit])
        context = list(ids[start + len(part) - limit - 1 : start]) if start else [prefix]
        yield TokenPair(context, part)
