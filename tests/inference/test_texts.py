"""Texts of answers: stop strings, found while tokens come one by one; and what is shown: whole characters, nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.inference.texts import StopWatch, TextStream, cut_at_stop, settled, spoken
from posttrain.models.load import load_tokenizer
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


MIXED = "鱻麤龘：臺灣最高的山是玉山，海拔 3,952 公尺。👩\u200d🔬 Voilà !\r\n\n繁體字\u3000"


def streamed(text_of: Callable[[list[int]], str], ids: list[int], *, tidies: bool = False) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(text_of, pieces.append, tidies=tidies)
    for end in range(1, len(ids) + 1):
        stream.add(ids[:end])
    stream.end(spoken(text_of(ids)))
    return pieces


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_characters_of_several_tokens_come_whole(pico_path: Callable[[str], Path], family: str) -> None:
    tokenizer = load_tokenizer(str(pico_path(family)))
    ids = tokenizer.encode(MIXED, add_special_tokens=False)
    assert len(ids) > len(MIXED)  # characters of several tokens
    pieces = streamed(tokenizer.decode, ids)
    assert "".join(pieces) == MIXED.strip()
    assert "\ufffd" not in "".join(pieces)
    assert pieces[:3] == ["鱻", "麤", "龘"]  # each is there as soon as its last byte is
    assert len(pieces) > 30


@given(st.lists(st.integers(0, 255), max_size=40))
def test_bytes_of_any_kind_come_to_the_same_text(bytes_: list[int]) -> None:
    def text_of(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    pieces = streamed(text_of, bytes_)
    assert "".join(pieces) == spoken(text_of(bytes_))


def test_a_character_that_really_is_a_question_mark_is_shown() -> None:
    words = ["a ", "\ufffd", " b"]
    assert streamed(lambda ids: "".join(words[i] for i in ids), [0, 1, 2]) == ["a", " \ufffd b"]


def test_thoughts_are_not_shown() -> None:
    words = ["<thi", "nk>", "\nhm", ", hm", "</think>", "\n\n", "Yes", "."]
    assert streamed(lambda ids: "".join(words[i] for i in ids), list(range(8))) == ["Yes", "."]


def test_thoughts_of_which_only_the_end_is_marked_are_followed_by_the_answer_on_a_new_line() -> None:
    words = ["hm", ", hm", "</think>", "Yes", "."]
    assert "".join(streamed(lambda ids: "".join(words[i] for i in ids), list(range(5)))) == "hm, hm\nYes."


def test_what_a_tokenizer_draws_together_is_held_back() -> None:
    words = ["We", " do", " n", "'t", " know", " it", " ."]

    def text_of(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace(" n't", "n't").replace(" .", ".")

    assert "".join(streamed(text_of, list(range(7)), tidies=True)) == "We don't know it."


def test_nothing_is_settled_while_a_word_may_become_a_thought() -> None:
    assert settled("<th") == settled("") == settled("  <think> so") == ""
    assert settled("<thin air") == "<thin air"
