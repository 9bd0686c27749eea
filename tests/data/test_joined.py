"""Prompt and completion without a template: what is learned reads as both texts, for tokenizers of every kind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.answers import encode_graded, encode_pairs, prompt_length
from posttrain.data.chat import IGNORED, Encoded, encode_prompt, render
from posttrain.data.joined import continued, join
from posttrain.data.records import Completion, Graded, Message, Preference
from tests.pico_tokenizers import KINDS, tokenizer_of

WHOLE = [kind for kind in KINDS if kind != "t5"]
"""Tokenizers that lose nothing of a text."""
SEAMS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is ", "Paris."),  # the space is the prompt's
    ("Q: 2+2=", "4"),
    ("2+2=", "=4"),  # == is one token
    ("play", "ing"),
    ("法國的首都是", "巴黎。"),
    ("法國的首都", "是巴黎"),
    ("A title\n", "\nand text"),
    ("A title\n\n", "text"),
    ("x ", " y"),
    ("Ω", "Ω🙂"),
    ("", "Paris."),
    (" ", "Paris."),
    ("tab\t", "\tPa"),
]
CASES = pytest.mark.parametrize(("prompt", "text"), SEAMS)


def read(ids: list[int], kind: str) -> str:
    """The text of ids, without the space that RoBERTa's kind puts before every text."""
    made = tokenizer_of(kind)
    text: str = made.decode([i for i in ids if i not in (made.bos_token_id, made.eos_token_id)])
    return text[1:] if kind == "bytes after a space" and text.startswith(" ") else text


def learned(row: Encoded) -> list[int]:
    return [label for label in row.labels if label != IGNORED]


@CASES
@pytest.mark.parametrize("kind", WHOLE)
def test_a_row_reads_as_prompt_and_completion(kind: str, prompt: str, text: str) -> None:
    made = tokenizer_of(kind)
    row = render(Completion(prompt, text, "f:1"), made)
    expected = prompt + text
    if kind in ("bytes after a space", "llama", "unigram"):  # a space at the very beginning is the tokenizer's own
        expected = expected.removeprefix(" ")
    assert read(row.input_ids, kind) == expected
    before = encode_prompt(prompt, made)
    assert row.input_ids[: len(before)] == before  # what generation will see
    assert row.labels == [IGNORED] * len(before) + row.input_ids[len(before) :]
    assert learned(row)[-1] == made.eos_token_id
    said = made.decode([*before, *learned(row)[:-1]])
    assert said == made.decode(before) + text or not prompt.strip()


@pytest.mark.parametrize("kind", WHOLE)
def test_no_space_of_its_own_is_learned(kind: str) -> None:
    """The fault as it was: `4` behind `2+2=` was learned as `▁4`."""
    made = tokenizer_of(kind)
    row = render(Completion("2+2=", "4", "f:1"), made)
    assert made.convert_ids_to_tokens(learned(row)) == ["4", "</s>"]


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60, deadline=None)
@given(prompt=st.text("ab =1\n的是🙂", max_size=6), text=st.text("ab =1\n的是🙂", min_size=1, max_size=6))
def test_any_seam(kind: str, prompt: str, text: str) -> None:
    made = tokenizer_of(kind)
    row = render(Completion("Q" + prompt, text, "f:1"), made)
    assert read(row.input_ids, kind) == "Q" + prompt + text
    assert made.decode(learned(row)[:-1]).lstrip() == text.lstrip() or "\ufffd" in made.decode(learned(row))


@pytest.mark.parametrize("kind", WHOLE)
def test_preferences_and_graded_answers(kind: str) -> None:
    """Both answers go on from the same tokens, also where one of them would join the prompt's last token."""
    made = tokenizer_of(kind)
    prompt, good, bad = (Message("user", "2+2="),), (Message("assistant", "4"),), (Message("assistant", "=5"),)
    (pair,) = encode_pairs([Preference(prompt, good, bad, "f:1", plain=True)], made, max_length=50).rows
    assert [read(side.input_ids, kind) for side in (pair.chosen, pair.rejected)] == ["2+2=4", "2+2==5"]
    heads = [side.input_ids[: prompt_length(side)] for side in (pair.chosen, pair.rejected)]
    assert heads[0] == heads[1] == encode_prompt("2+2=", made)
    (row,) = encode_graded([Graded(prompt, bad, True, "f:1", plain=True)], made, max_length=50).rows
    assert read(row.answer.input_ids, kind) == "2+2==5"


def test_a_tokenizer_that_drops_spaces() -> None:
    made = tokenizer_of("t5")
    row = render(Completion("The capital is ", "  Paris.\n", "f:1"), made)
    assert made.decode(row.input_ids, skip_special_tokens=True) == "The capital is Paris."
    row = render(Completion("play", "ing", "f:1"), made)
    assert made.decode(row.input_ids, skip_special_tokens=True) == "playing"


def test_words_that_cannot_be_split_are_cut_before_the_seam() -> None:
    """BERT's kind writes `play ing` whatever the ids: the whole word is learned, never another one."""
    made = _word_pieces()
    before, whole = ([made.vocab[t] for t in tokens] for tokens in (["[CLS]", "pl", "##ay"], ["[CLS]", "playing"]))
    joined = join(before, whole, "play", "ing", made)
    assert made.convert_ids_to_tokens(joined.before) == ["[CLS]"]
    assert made.convert_ids_to_tokens(joined.after) == ["playing"]


def test_what_a_tokenizer_puts_after_every_text_is_no_part_of_it() -> None:
    made = _word_pieces()
    before, whole = made("pl")["input_ids"], made("pl ing")["input_ids"]
    assert made.convert_ids_to_tokens(whole) == ["[CLS]", "pl", "ing", "[SEP]"]
    assert made.convert_ids_to_tokens(join(before, whole, "pl", " ing", made).after) == ["ing"]


def _word_pieces() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pl", "##ay", "ing", "playing", "a", ".", "0"]
    raw = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def test_unknown_characters_beside_each_other_are_two() -> None:
    """Where one unknown token stands for any number of characters, the second text keeps one of its own."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE({"<unk>": 0, "a": 1, "b": 2}, [], unk_token="<unk>", fuse_unk=True))
    made = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    assert made.encode("xy") == [0]
    assert join(made.encode("ax"), made.encode("axy"), "ax", "y", made) == ([1, 0], [0])


@pytest.mark.parametrize("kind", WHOLE)
def test_an_answer_behind_a_prompt(kind: str) -> None:
    made = tokenizer_of(kind)
    assert made.convert_ids_to_tokens(continued("2+2=", "4", made)) == ["4"]
    assert made.decode([*made.encode("2+2="), *continued("2+2=", "=4", made)]) == made.decode(made.encode("2+2==4"))
