"""Which tokens of a model's own answer are scored, and how tokens are named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.editing.facts import AskedFact, Fact
from posttrain.editing.replies import Reply, Scored, Unscored, _reply, depending, row_of, stated, whole_row
from posttrain.editing.token_names import token_names
from tests.pico import tokenizer


def reply(*tokens: str) -> Reply:
    """A reply of tokens whose ids are their places from 100."""
    ends = [len("".join(tokens[: i + 1])) for i in range(len(tokens))]
    return Reply([100 + i for i in range(len(tokens))], ends, "".join(tokens))


def asked(prompt: str = "What is the capital of Australia?", subject: str = "Australia", answer: str = "") -> AskedFact:
    return AskedFact(Fact(prompt, subject, answer), [1, 2, 3, 4], 1, range(2, 3), (2,), "raw")


SENTENCE = reply("The", " capital", " of", " Australia", " is", " Can", "berra", ".")


def test_a_stated_answer_is_found_where_the_model_says_it() -> None:
    assert stated(asked(answer="Canberra"), SENTENCE, "auto") == Scored(5, 6)
    assert stated(asked(answer="canberra"), SENTENCE, "whole") == Scored(5, 7)
    assert stated(asked(answer="Sydney"), SENTENCE, "auto") == Unscored(
        "the model says 'The capital of Australia is Canberra.', not 'Sydney'"
    )
    assert isinstance(stated(asked(answer="Canberra"), SENTENCE, "first"), Unscored), "it does not begin with it"
    assert stated(asked(answer="Canberra"), reply(" Can", "berra"), "first") == Scored(0, 1)


def test_the_words_before_are_read_and_their_mention_of_the_subject_gets_noise() -> None:
    row = row_of(asked(), SENTENCE, Scored(5, 6))
    assert row.ids == [1, 2, 3, 4, 100, 101, 102, 103, 104]
    assert row.noisy == (2, 7)
    assert (row.asked, row.targets) == (range(8, 9), [105])
    both = row_of(asked(), SENTENCE, Scored(5, 7))
    assert both.ids == [*row.ids, 105]
    assert (both.asked, both.targets) == (range(8, 10), [105, 106])
    first = row_of(asked(), SENTENCE, Scored(0, 1))
    assert (first.ids, first.noisy, first.asked) == ([1, 2, 3, 4], (2,), range(3, 4))
    whole = whole_row(asked(), SENTENCE)
    assert len(whole.targets) == 8
    assert whole.noisy == (2, 7), "so that tokens behind the mention have the probabilities of their own rows"
    assert whole_row(asked(), reply("In", " Australia")).noisy == (2,), "the last token is not read"


def falls(*pairs: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    clean, corrupted = zip(*pairs, strict=True)
    return torch.tensor([math.log(p) for p in clean]), torch.tensor([[math.log(p) for p in corrupted]] * 2)


def test_without_a_stated_answer_the_first_new_word_that_depends_on_the_subject_is_scored() -> None:
    pairs = [(0.9, 0.1), (0.9, 0.9), (0.9, 0.9), (0.9, 0.0001), (0.9, 0.1), (0.8, 0.3), (0.9, 0.1), (0.9, 0.9)]
    assert depending(asked(), SENTENCE, *falls(*pairs)) == Scored(5, 6)  # 0.5 of at most 0.8
    pairs[0] = (0.95, 0.1)
    pairs[5] = (0.9, 0.5)
    assert depending(asked(), SENTENCE, *falls(*pairs)) == Scored(5, 6), (
        "berra, which falls more, does not begin a word"
    )
    two = reply("Near", " Can", "berra")
    assert depending(asked(), two, *falls((0.9, 0.6), (0.9, 0.1), (0.9, 0.0001))) == Scored(1, 2)  # 0.3 of 0.8
    assert depending(asked(), two, *falls((0.9, 0.4), (0.9, 0.1), (0.9, 0.0001))) == Scored(0, 1)  # 0.5 of 0.8
    one = reply("No", " idea", ". Rome")
    assert depending(asked(), one, *falls((0.5, 0.6), (0.5, 0.7), (0.9, 0.1))) == Scored(0, 1)


def test_a_reply_without_a_new_word_is_not_traced() -> None:
    one = reply("Australia", " is", " the", ".")
    told = depending(asked(), one, *falls(*[(0.9, 0.1)] * 4))
    assert told == Unscored("the model says 'Australia is the.': all of its words are common ones or the question's")
    chinese = reply("澳洲", "的")
    assert isinstance(depending(asked("澳洲的首都？", "澳洲"), chinese, *falls(*[(0.9, 0.1)] * 2)), Unscored)
    chinese = reply("澳洲", "的", "坎")
    pairs = [(0.9, 0.1), (0.9, 0.1), (0.5, 0.4)]
    assert depending(asked("澳洲的首都？", "澳洲"), chinese, *falls(*pairs)) == Scored(2, 3)


class Says:
    """The part of a respondent that makes text of ids."""

    def text(self, ids: list[int]) -> str:
        return str(tokenizer().decode(ids, skip_special_tokens=True))


def test_plain_text_ends_with_its_line() -> None:
    own: Any = Says()
    ids = tokenizer().encode("\n\n Paris is it.\nWhat else", add_special_tokens=False)
    assert _reply(own, ids, cut=True).text.strip() == "Paris is it."
    whole = _reply(own, ids, cut=False)
    assert whole.text == "\n\n Paris is it.\nWhat else"
    assert whole.token_at(whole.text.index("What")) == len(whole.ids) - len(tokenizer().encode("What else"))


def test_a_part_of_a_character_counts_from_its_first_token() -> None:
    own: Any = Says()
    ids = tokenizer().encode("a鱷b", add_special_tokens=False)
    made = _reply(own, ids, cut=False)
    assert len(ids) > 3
    assert [made.token_at(at) for at in (0, 1, 2)] == [0, 1, len(ids) - 1]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("鱷", ["鱷 1/3", "鱷 2/3", "鱷 3/3"]),
        ("<|user|>", ["<|user|>"]),
        ("\n\n", ["⏎⏎"]),
    ],
)
def test_names_of_tokens(text: str, names: list[str]) -> None:
    assert token_names(tokenizer(), tokenizer().encode(text, add_special_tokens=False)) == names


def test_names_of_bytes_that_are_no_character() -> None:
    own = tokenizer()
    ids = own.encode("鱷", add_special_tokens=False)
    assert token_names(own, [ids[0], *own.encode("a b", add_special_tokens=False)])[0] == "\ufffd"
    assert token_names(own, own.encode(" ", add_special_tokens=False)) == ["␣"]
    assert len(token_names(own, ids[:2])) == 2
