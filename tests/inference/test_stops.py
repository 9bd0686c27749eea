"""Stop strings, found while tokens come one by one, against the first one in the whole text."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.inference.stops import StopWatch, cut_at_stop
from tests.pico import tokenizer

TEXT = "The capital of France is Paris.\n\n臺灣最高的山是玉山。 Who wrote Hamlet? é🙂 "


def bytewise(text: str) -> list[int]:
    """Every byte a token of its own: characters are torn."""
    alphabet = {c: tokenizer().convert_tokens_to_ids(c) for c in tokenizer().get_vocab() if len(c) == 1}
    pieces = tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [alphabet[c] for piece, _ in pieces for c in piece]


def decoded(ids: Sequence[int]) -> str:
    text: str = tokenizer().decode(list(ids), skip_special_tokens=True)
    return text


def first_hit(ids: Sequence[int], stops: Sequence[str], text_of: Callable[[Sequence[int]], str]) -> int | None:
    """How many tokens it takes until the whole decoded text holds a stop string."""
    return next((n for n in range(1, len(ids) + 1) if any(s in text_of(ids[:n]) for s in stops)), None)


def watched(ids: Sequence[int], stops: Sequence[str], text_of: Callable[[Sequence[int]], str]) -> int | None:
    watch = StopWatch(stops, text_of)
    return next((n for n in range(1, len(ids) + 1) if watch.met(list(ids[:n]))), None)


@pytest.mark.parametrize("encode", [bytewise, lambda text: tokenizer().encode(text, add_special_tokens=False)])
@pytest.mark.parametrize("stop", ["\n\n", "Hamlet?", "玉山", "🙂", "é", "apital of F", "not there", "。 W"])
@pytest.mark.parametrize("before", [0, 40])
def test_found_with_the_same_token_as_in_the_whole_text(
    encode: Callable[[str], list[int]], stop: str, before: int
) -> None:
    ids = encode("so it goes, and goes; " * before + TEXT)
    assert watched(ids, [stop], decoded) == first_hit(ids, [stop], decoded)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 383), max_size=120),
    st.lists(st.text("ab \n.山é<", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_random_tokens(ids: list[int], stops: list[str]) -> None:
    assert watched(ids, stops, decoded) == first_hit(ids, stops, decoded)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=100), st.text("ab ", min_size=1, max_size=5))
def test_a_decoder_that_drops_the_first_space(ids: list[int], stop: str) -> None:
    words = [" a", " b", "a", "b", "", "ab ba"]

    def text_of(some: Sequence[int]) -> str:  # as SentencePiece's
        return "".join(words[i] for i in some).removeprefix(" ")

    assert watched(ids, [stop], text_of) == first_hit(ids, [stop], text_of)


def test_only_a_window_is_decoded() -> None:
    decoded_tokens = 0

    def text_of(ids: Sequence[int]) -> str:
        nonlocal decoded_tokens
        decoded_tokens += len(ids)
        return "x" * len(ids)

    watch = StopWatch(["stop"], text_of)
    assert not any(watch.met([0] * n) for n in range(1, 1001))
    assert decoded_tokens < 80 * 1000  # the whole text each time: 500,500


def test_cut_before_the_earliest_and_never_at_nothing() -> None:
    assert cut_at_stop("one two three", ["three", "two"]) == ("one ", True)
    assert cut_at_stop("one", ["", "x"]) == ("one", False)
    assert cut_at_stop("stop", ["stop"]) == ("", True)


def test_no_stop_strings_decode_nothing() -> None:
    def never(ids: Any) -> str:
        raise AssertionError

    assert not StopWatch(["", ""], never).met([1, 2])
