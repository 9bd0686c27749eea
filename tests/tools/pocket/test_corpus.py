"""Texts and tokenizer: deterministic, any text encodes, the loss falls on the answers."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tools.pocket.build import REPEAT, chats, packed, texts
from tools.pocket.corpus import conversations, documents
from tools.pocket.tokenizer import SPECIAL, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(texts(0, 300), 700)


def test_the_same_seed_gives_the_same_texts() -> None:
    assert list(islice(documents(4), 20)) == list(islice(documents(4), 20))
    assert list(islice(documents(4), 20)) != list(islice(documents(5), 20))
    assert list(islice(conversations(4), 20)) == list(islice(conversations(4), 20))


def test_a_share_of_the_users_turns_is_learned() -> None:
    rows = list(islice(conversations(0), 1000))
    learned = sum(row.messages[0].train is True for row in rows)
    assert 100 < learned < 200


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_encodes_and_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_chinese_character_or_digit_never_merges_with_its_neighbour(tokenizer: PreTrainedTokenizerFast) -> None:
    one = tokenizer("法國的首都是巴黎2026")["input_ids"]
    parts = [i for c in "法國的首都是巴黎2026" for i in tokenizer(c)["input_ids"]]
    assert one == parts
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL] == list(range(6))


def test_rows_for_training(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in packed(tokenizer, documents(0), 2000):
        assert len(row.input_ids) == 128
        assert row.labels == row.input_ids
    rows = chats(tokenizer, conversations(0, repeat=REPEAT), 2000)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    for row, conversation in zip(rows[:200], conversations(0, repeat=REPEAT), strict=False):
        learned = [i for i in row.labels if i != -100]
        words = [m.content for m in conversation.messages if m.supervised]
        assert learned.count(end) == len(words)
        assert tokenizer.decode(learned) == "".join(f"{w}<|end|>" for w in words)
