"""A text and its continuation without a template, and where a turn begins: rows have the tokens that generation sees."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.answers import encode_graded, encode_pairs, prompt_length
from posttrain.data.chat import IGNORED, Encoded, encode_prompt, outcomes, render
from posttrain.data.lengths import Limits
from posttrain.data.records import Completion, Graded, Message, Preference
from posttrain.data.tokens import Start, as_prompted, continued, join
from posttrain.errors import Problem, TemplateError
from tests.data.test_chat import ANSWER, ASK, GLM_LIKE, PHI_LIKE, talk, using
from tests.pico import CHATML
from tests.pico_tokenizers import KINDS, tokenizer_of
from tests.templates import learned

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


def labelled(row: Encoded) -> list[int]:
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
    assert labelled(row)[-1] == made.eos_token_id
    said = made.decode([*before, *labelled(row)[:-1]])
    assert said == made.decode(before) + text or not prompt.strip()


@pytest.mark.parametrize("kind", WHOLE)
def test_no_space_of_its_own_is_learned(kind: str) -> None:
    """The fault as it was: `4` behind `2+2=` was learned as `▁4`."""
    made = tokenizer_of(kind)
    row = render(Completion("2+2=", "4", "f:1"), made)
    assert made.convert_ids_to_tokens(labelled(row)) == ["4", "</s>"]


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60, deadline=None)
@given(prompt=st.text("ab =1\n的是🙂", max_size=6), text=st.text("ab =1\n的是🙂", min_size=1, max_size=6))
def test_any_seam(kind: str, prompt: str, text: str) -> None:
    made = tokenizer_of(kind)
    row = render(Completion("Q" + prompt, text, "f:1"), made)
    assert read(row.input_ids, kind) == "Q" + prompt + text
    assert made.decode(labelled(row)[:-1]).lstrip() == text.lstrip() or "\ufffd" in made.decode(labelled(row))


@pytest.mark.parametrize("kind", WHOLE)
def test_preferences_and_graded_answers(kind: str) -> None:
    """Both answers go on from the same tokens, also where one of them would join the prompt's last token."""
    made = tokenizer_of(kind)
    prompt, good, bad = (Message("user", "2+2="),), (Message("assistant", "4"),), (Message("assistant", "=5"),)
    (pair,) = encode_pairs([Preference(prompt, good, bad, "f:1", plain=True)], made, Limits(50)).rows
    assert [read(side.input_ids, kind) for side in (pair.chosen, pair.rejected)] == ["2+2=4", "2+2==5"]
    heads = [side.input_ids[: prompt_length(side)] for side in (pair.chosen, pair.rejected)]
    assert heads[0] == heads[1] == encode_prompt("2+2=", made)
    (row,) = encode_graded([Graded(prompt, bad, True, "f:1", plain=True)], made, Limits(50)).rows
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


TAGS = {  # how the assistant's tag ends: after a special token, after words, in two line breaks, in a space
    "glm": GLM_LIKE,
    "chatml": CHATML,
    "phi": PHI_LIKE,
    "llama": GLM_LIKE.replace("|>\n'", "|>\n\n'"),
    "vicuna": CHATML.replace("assistant\n", "assistant: ").replace("m.role + '\n'", "m.role + ': '"),
}


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
@pytest.mark.parametrize("answer", ["Hello", "你好", "\nHello", "\n\nHello", "\n\n\n", " Hello", "  Hello", "\tHello"])
@pytest.mark.parametrize("tag", TAGS)
def test_a_row_begins_with_its_prompt_or_is_refused(tag: str, answer: str, loss_on: Any) -> None:
    """The tokens that generation sees, and no part of the tag among those that are learned."""
    tok = using(TAGS[tag])
    (row,) = outcomes([talk(ASK, Message("assistant", answer))], tok, loss_on)
    if isinstance(row, Problem):
        assert (
            "the first token of a turn joins the end of the template's tag and the beginning of the turn" in row.cause
        )
        assert answer[0].isspace()  # what is wrong with it can be mended
        return
    prompt = encode_prompt((ASK,), tok)
    assert row.input_ids[: len(prompt)] == prompt
    if loss_on == "all":
        assert row.labels == row.input_ids
    else:
        assert row.labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert learned(row, tok) == [tok.decode([i for i in row.labels if i != IGNORED])]
        assert learned(row, tok)[0].startswith(answer)


@pytest.mark.parametrize("tag", ["glm", "phi"])
def test_a_line_break_that_joins_the_tags_is_refused(tag: str) -> None:
    tok = using(TAGS[tag])
    with pytest.raises(TemplateError, match=r"rows.jsonl:1: the first token of a turn joins"):
        render(talk(ASK, Message("assistant", "\n\nHello")), tok)
    for turns in ((Message("user", "\n\nHi", train=True), ANSWER), (ASK, ANSWER, ASK, Message("assistant", "\n\nHi"))):
        with pytest.raises(TemplateError, match=r"rows.jsonl:1: the first token of a turn joins"):
            render(talk(*turns), tok)


def test_every_answer_of_a_conversation_after_a_tag_that_is_cut() -> None:
    tok = using(TAGS["llama"])
    row = render(talk(ASK, ANSWER, ASK, ANSWER), tok)
    assert learned(row, tok) == ["你好, I.<|user|>", "你好, I.<|user|>"]
    tag = encode_prompt((ASK,), tok)[-2:]
    assert tok.decode(tag) == "<|assistant|>\n\n"
    assert len(tag) == 2  # alone two line breaks are one token, before words two: both turns have the one
    ids = row.input_ids
    assert sum(ids[i : i + 2] == tag for i in range(len(ids))) == 2


def test_by_hand() -> None:
    """Row: bos | tag, break, break | 7 8 end; alone the two breaks are one token, 9."""
    row, labels = [1, 2, 3, 3, 7, 8, 5], [IGNORED] * 4 + [7, 8, 5]
    start = Start(4, 0, True)
    assert as_prompted(row, labels, [(start, [1, 2, 9])]) == ([1, 2, 9, 7, 8, 5], [IGNORED] * 3 + [7, 8, 5])
    assert as_prompted(row, row, [(start, [1, 2, 9])]) == ([1, 2, 9, 7, 8, 5], [1, 2, 9, 7, 8, 5])
    assert as_prompted(row, labels, [(start, [1, 2, 3, 3])]) == (row, labels)
    assert as_prompted(row, labels, [(start, [1, 2, 3, 3, 9])]) == (
        [*row[:4], 9, *row[4:]],
        [*labels[:4], IGNORED, *labels[4:]],
    )
    assert as_prompted(row, labels, [(start._replace(exact=False), [1, 2, 9])]) is None
    # the tokens that differ are learned: they are another turn's, too
    assert as_prompted(row, [IGNORED] * 3 + [3, 7, 8, 5], [(start, [1, 2, 9])]) is None
