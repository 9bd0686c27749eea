"""Contexts and continuations as token ids, for tokenizers of every kind; lm-eval's own way is the oracle where it is
right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.inference.plain import encode_plain, plain_pair
from tests.pico_tokenizers import KINDS, tokenizer_of

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Paris"),
    ("首都是", "巴黎"),
    ("Answer:", " A"),
    ("Answer:\n", "A"),
    ("a title\n", "\nmore"),
    ("1 =", "= 2"),
    ("play", "ing"),
    ("2+2=", "4"),
    ("2+2=", "=4"),
    ("ab", "c"),
    ("  ", "Paris"),
]


def of_lm_eval(context: str, continuation: str, made: Any) -> tuple[list[int], list[int]]:
    from lm_eval.api.model import TemplateLM

    lm = SimpleNamespace(backend="causal", tok_encode=lambda text: encode_plain(text, made))
    pair: tuple[list[int], list[int]] = TemplateLM._encode_pair(lm, context, continuation)
    return pair


@pytest.mark.parametrize("kind", KINDS)
def test_as_lm_eval_where_it_is_right(kind: str) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    made = tokenizer_of(kind)
    right = 0
    for context, continuation in PAIRS:
        theirs = of_lm_eval(context, continuation, made)
        whole = encode_plain(context + continuation, made)
        if [*theirs[0], *theirs[1]] == whole and theirs[0] and theirs[1]:
            assert tuple(plain_pair(context, continuation, made)) == theirs
            right += 1
    assert right >= len(PAIRS) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_has_tokens_of_its_own(kind: str) -> None:
    """Also where it joins the context's last token, and the context is the same for every choice."""
    made = tokenizer_of(kind)
    for context, continuation in PAIRS:
        pair = plain_pair(context, continuation, made)
        assert pair.continuation
        begun = made.bos_token_id in encode_plain("a", made)
        ids = pair.context[0 if begun else pair.context[:1] == [made.bos_token_id] :] + pair.continuation
        assert made.decode(ids) == made.decode(encode_plain(context + continuation, made))
        if context.strip():
            assert pair.context == encode_plain(context.rstrip(), made)


def test_a_choice_that_joins_the_context() -> None:
    """The fault as it was: `=` and `=` are one token, so that nothing was left of the choice."""
    made = tokenizer_of("bytes")
    assert made.convert_ids_to_tokens(encode_plain("2+2==", made))[-1] == "=="
    assert made.convert_ids_to_tokens(plain_pair("2+2=", "=", made).continuation) == ["="]
    assert made.convert_ids_to_tokens(plain_pair("2+2=", "4", made).continuation) == ["4"]
