"""Plain text to token ids, as lm-eval 0.4.13 does it: where a context ends and its continuation begins, and windows.

    pair      spaces at the context's end move to the continuation; the whole is encoded and cut at the length of the
              encoded context (lm_eval/api/model.py, `_encode_pair`); an empty context is the prefix token
    rolling   one prefix token, then windows of the model's context; only the last looks back (`loglikelihood_rolling`)
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

from posttrain.errors import PosttrainError

__all__ = ["TokenPair", "cut_left", "encode_plain", "plain_pair", "prefix_token", "rolling_windows"]


class TokenPair(NamedTuple):
    """Token ids of a context (at least one) and of what is scored after it."""

    context: list[int]
    continuation: list[int]


def prefix_token(tokenizer: Any) -> int:
    """What stands before the first token of a document: bos, or eos where there is none."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise PosttrainError("the tokenizer has neither bos nor eos: nothing can stand before an empty context")


def encode_plain(text: str, tokenizer: Any) -> list[int]:
    """Ids with the tokenizer's own special tokens, bos not twice where the text has it already."""
    bos = tokenizer.decode(prefix_token(tokenizer))
    ids: list[int] = tokenizer.encode(text, **({"add_special_tokens": False} if bos and text.startswith(bos) else {}))
    return ids


def plain_pair(
    context: str, continuation: str, tokenizer: Any, lengths: MutableMapping[str, int] | None = None
) -> TokenPair:
    """A context and its continuation as ids, cut on the tokens of the whole.

    lengths: of contexts that have been encoded already, in tokens; several choices of a question share one.
    """
    if not context:
        ids: list[int] = tokenizer.encode(continuation, add_special_tokens=False)
        prefix = prefix_token(tokenizer)
        return TokenPair([ids[0]], ids[1:]) if ids[:1] == [prefix] else TokenPair([prefix], ids)
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = encode_plain(context + continuation, tokenizer)
    length = lengths.get(context) if lengths is not None else None
    if length is None:
        length = len(encode_plain(context, tokenizer)) if context else 0
        if lengths is not None:
            lengths[context] = length
    if not length:  # nothing but spaces, and a tokenizer that puts nothing in front
        return TokenPair([prefix_token(tokenizer)], whole)
    return TokenPair(whole[:length], whole[length:])


def cut_left(pair: TokenPair, limit: int) -> TokenPair:
    """The pair without what lies more than `limit` positions before its last token; part of a very long continuation
    may be lost too, as in lm-eval.
    """
    whole = [*pair.context, *pair.continuation][-(limit + 1) :]
    kept = min(len(pair.continuation), len(whole) - 1)
    return TokenPair(whole[: len(whole) - kept], whole[len(whole) - kept :])


def rolling_windows(ids: Sequence[int], prefix: int, limit: int) -> Iterator[TokenPair]:
    """Windows of `limit` tokens, each token scored once: the first after the prefix token, the next after the last
    token of the one before; the last one, shorter, after as many tokens as fit (`get_rolling_token_windows`).
    """
    for start in range(0, len(ids), limit):
        part = list(ids[start : start + limit])
        context = list(ids[start + len(part) - limit - 1 : start]) if start else [prefix]
        yield TokenPair(context, part)
