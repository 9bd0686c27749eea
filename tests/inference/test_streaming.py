"""An answer shown while it is made: whole characters only, nothing twice, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.inference.encoding import spoken
from posttrain.inference.streaming import TextStream, settled
from posttrain.models.load import load_tokenizer

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
