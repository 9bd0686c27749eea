"""Labelled texts, tags and questions as token ids: what the model reads, and which piece stands for what."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from posttrain.data.head_rows import HeadSettings, encode_questions, encode_tags, encode_texts, pad, spaced, tag_targets
from posttrain.data.records import LabelledText, ReadingQuestion, Record, SpanAnswer, TaggedTokens, Text
from posttrain.errors import DataError
from tests.pico import tokenizer, word_pieces
from tests.pico_tokenizers import KINDS, tokenizer_of

AB = HeadSettings(("a", "b"), 64)
Tokenizer = Callable[[], Any]
BOTH = pytest.mark.parametrize("make", [tokenizer, word_pieces], ids=["decoder", "encoder"])


def test_texts_and_pairs() -> None:
    records = [LabelledText("Hello", ("b",), "f:1"), LabelledText("Hello", ("a",), "f:2", "yen")]
    one, two = encode_texts(records, word_pieces(), AB).rows
    said = word_pieces().convert_ids_to_tokens
    assert (said(one.input_ids), one.types, one.labels) == (["[CLS]", "Hello", "[SEP]"], [0, 0, 0], (1,))
    assert (said(two.input_ids), two.types) == (["[CLS]", "Hello", "[SEP]", "yen", "[SEP]"], [0, 0, 0, 1, 1])
    one, two = encode_texts(records, tokenizer(), AB).rows
    assert tokenizer().decode(two.input_ids) == "Hello\nyen"
    assert one.types is None


def test_every_bad_label_is_named_at_once() -> None:
    records: list[Record] = [
        LabelledText("x", ("aa",), "f:1"),
        LabelledText("x", ("a",), "f:2"),
        LabelledText("x", ("z",), "f:3"),
        LabelledText("x", (), "f:4", gold=False),
        LabelledText("x", ("a", "b"), "f:5"),
        Text("x", "f:6"),
    ]
    with pytest.raises(DataError) as caught:
        encode_texts(records, tokenizer(), AB)
    said = str(caught.value).splitlines()
    assert said[0] == "f:1: the label 'aa' is not among the 2 labels; did you mean 'a'? known: a, b"
    assert said[1] == "f:3: the label 'z' is not among the 2 labels; known: a, b; or add it to labels"
    assert said[2] == 'f:4: no \'label\'; add "label": "..."'
    assert said[3] == "f:5: 2 labels, where each text has one; multi_label: true, where a text may have several"
    assert said[4].startswith("f:6: no labelled text")
    assert said[5] == "5 of 6 rows cannot be used; --on-bad-row skip leaves them out"
    found = encode_texts(records, tokenizer(), AB._replace(on_bad_row="skip"))
    assert [row.location for row in found.rows] == ["f:2"]
    assert len(found.problems) == 5


def test_several_labels() -> None:
    settings = AB._replace(multi_label=True)
    records = [LabelledText("x", (), "f:1"), LabelledText("x", ("b", "a"), "f:2")]
    assert [row.labels for row in encode_texts(records, tokenizer(), settings).rows] == [(), (1, 0)]


@BOTH
def test_long_texts(make: Tokenizer) -> None:
    records = [LabelledText("Hello, who are you? " * 20, ("a",), "f:1"), LabelledText("Hello", ("a",), "f:2")]
    with pytest.raises(DataError, match=r"f:1: \d+ tokens, more than max_length 16"):
        encode_texts(records, make(), AB._replace(max_length=16))
    found = encode_texts(records, make(), AB._replace(max_length=16, over_long="drop"))
    assert (found.dropped, [row.location for row in found.rows]) == (1, ["f:2"])
    found = encode_texts(records, make(), AB._replace(max_length=16, over_long="truncate"))
    assert (found.truncated, len(found.rows[0].input_ids), found.rows[0].truncated) == (1, 16, True)
    if make is word_pieces:
        assert found.rows[0].input_ids[-1] == make().sep_token_id


def test_spaces_between_tokens() -> None:
    assert "".join(spaced(["Ada", "lives", "in", "臺", "北", "today"])) == "Ada lives in臺北today"


@BOTH
def test_the_first_piece_stands_for_its_token(make: Tokenizer) -> None:
    tokens = ("Shakespeare", "wrote", "哈姆雷特", "\u200b", "xylophone")
    record = TaggedTokens(tokens, ("a", "b", "a", "b", "b"), "f:1")
    (row,) = encode_tags([record], make(), AB).rows
    pieces = make().convert_ids_to_tokens(row.input_ids)
    assert row.tags == [0, 1, 0, 1, 1]
    starts = [p for p in row.first if p >= 0]
    assert starts == sorted(set(starts))
    for token, position in zip(tokens, row.first, strict=True):
        if position >= 0:
            text = make().decode([row.input_ids[position]]).strip()
            assert token.startswith(text) or "�" in text, (token, text)
    assert (row.first[3] < 0) == (make is word_pieces)  # BERT drops a zero-width space
    targets = tag_targets([row], len(pieces))
    assert int((targets != -100).sum()) == len(starts)
    assert [int(targets[0, p]) for p in row.first if p >= 0] == [
        t for t, p in zip(row.tags, row.first, strict=True) if p >= 0
    ]


def test_tags_that_cannot_be() -> None:
    with pytest.raises(DataError, match=r"f:1: the label 'B-PERS' is not among the 3 labels; did you mean 'B-PER'"):
        encode_tags([TaggedTokens(("x",), ("B-PERS",), "f:1")], tokenizer(), HeadSettings(("O", "B-PER", "I-PER"), 64))
    with pytest.raises(DataError, match="f:1: no 'tags'"):
        encode_tags([TaggedTokens(("x",), (), "f:1", gold=False)], tokenizer(), AB)


CONTEXT = (
    "The highest mountain in Taiwan is Yushan. " * 3 + "日本的貨幣是日圓。 " + "The capital of France is Paris. " * 3
)


@BOTH
@pytest.mark.parametrize("length", [24, 40, 500])
def test_windows(make: Tokenizer, length: int) -> None:
    """Every piece of the text is in a window; each window is as long as it may be; the answer's pieces say it."""
    start = CONTEXT.index("日圓")
    record = ReadingQuestion("Which?", CONTEXT, (SpanAnswer("日圓", start),), "f:1")
    settings = HeadSettings((), length, doc_stride=6)
    rows = encode_questions([record], make(), settings).rows
    assert (len(rows) == 1) == (length == 500)
    assert {row.number for row in rows} == {0}
    assert all(len(row.input_ids) == length for row in rows[:-1])
    assert all(len(row.input_ids) <= length for row in rows)
    covered = {c for row in rows for a, b in row.offsets for c in range(a, b)}
    assert {c for c, character in enumerate(CONTEXT) if not character.isspace()} <= covered
    for one, other in itertools.pairwise(rows):
        shared = [pair for pair in one.offsets if pair in other.offsets]
        assert len(shared) >= 6 or make is tokenizer  # bytes of a character share their offsets
        assert one.input_ids[one.context : one.context + len(one.offsets)][-6:] == other.input_ids[other.context :][:6]
    found = 0
    for row in rows:
        assert row.location == "f:1"
        if row.start != row.null:
            first, last = row.offsets[row.start - row.context], row.offsets[row.end - row.context]
            assert CONTEXT[first[0] : last[1]].strip() == "日圓"
            found += 1
        else:
            assert row.end == row.null
            assert not any(a <= start and b >= start + 2 for a, b in [(row.offsets[0][0], row.offsets[-1][1])])
    assert found >= 1
    null = make().cls_token_id if make is word_pieces else make().eos_token_id
    assert all(row.input_ids[row.null] == null for row in rows)
    if make is word_pieces:
        assert all(row.null == 0 and row.types and row.types[row.context] == 1 for row in rows)
    else:
        assert all(row.null == len(row.input_ids) - 1 for row in rows)


@BOTH
def test_a_question_without_answer_and_one_that_fills_the_window(make: Tokenizer) -> None:
    none = ReadingQuestion("Which?", "Paris.", (), "f:1")
    (row,) = encode_questions([none], make(), HeadSettings((), 32)).rows
    assert row.start == row.end == row.null
    long = ReadingQuestion("Who wrote Hamlet? " * 10, "Paris.", (), "f:2")
    with pytest.raises(DataError, match=r"f:2: \d+ tokens, more than max_length 32"):
        encode_questions([none, long], make(), HeadSettings((), 32))
    found = encode_questions([none, long], make(), HeadSettings((), 32, over_long="drop"))
    assert (found.dropped, len(found.rows)) == (1, 1)
    with pytest.raises(DataError, match="f:3: no 'answers'"):
        encode_questions([ReadingQuestion("q", "c", (), "f:3", gold=False)], make(), HeadSettings((), 32))


def test_padding() -> None:
    records = [LabelledText("Hello", ("a",), "f:1"), LabelledText("Hello Hello", ("a",), "f:2", "yen")]
    rows = encode_texts(records, word_pieces(), AB).rows
    padded = pad(rows, 0)
    assert padded.input_ids[0].tolist() == [*rows[0].input_ids, 0, 0, 0]
    assert padded.attention_mask.sum(1).tolist() == [3, 6]
    assert padded.types is not None
    assert padded.types[1].tolist() == [0, 0, 0, 0, 1, 1]


def test_labels_of_another_set_are_read_over_where_none_are_needed() -> None:
    """`posttrain predict` compares them by name."""
    records = [LabelledText("a", ("elsewhere",), "x:1"), LabelledText("b", (), "x:2", gold=False)]
    made = encode_texts(records, tokenizer(None), HeadSettings(("good",), 8, gold=False))
    assert [row.labels for row in made.rows] == [(), ()]


def pieces(row: Any, made: Any) -> list[str | None]:
    """The piece that stands for each token."""
    return [made.convert_ids_to_tokens(row.input_ids[p]) if p >= 0 else None for p in row.first]


@pytest.mark.parametrize("kind", KINDS)
def test_the_piece_that_stands_for_a_token_holds_a_character_of_it(kind: str) -> None:
    """The fault as it was: a bare `Ġ` or `▁` stood for `xylophone`, whatever was written behind it."""
    made = tokenizer_of(kind)
    tokens = ("Ada", "xylophone", "哈", "臺", "is", "zebra", "🙂", ".")
    record = TaggedTokens(tokens, ("a",) * len(tokens), "f:1")
    (old,) = encode_tags([record], made, AB._replace(piece="start")).rows
    assert any(piece.strip("▁Ġ") == "" for piece in pieces(old, made) if piece)
    (row,) = encode_tags([record], made, AB).rows
    (last,) = encode_tags([record], made, AB._replace(piece="last")).rows
    word_ids = made([*spaced(tokens)], is_split_into_words=True).word_ids()
    assert old.first == [word_ids.index(n) for n in range(len(tokens))]
    for i, token in enumerate(tokens):
        begun = made.decode(row.input_ids[: row.first[i]])
        after = made.decode(row.input_ids[: row.first[i] + 1])
        written = after.removeprefix(begun).strip()
        assert written
        assert token.startswith(written) or "\ufffd" in written
        ended = made.decode(row.input_ids[: last.first[i] + 1])
        assert ended.endswith(token)


def test_tokens_of_nothing_but_spaces_and_tokens_that_are_cut() -> None:
    made = tokenizer_of("bytes")
    record = TaggedTokens(("a", "  ", "xylophone"), ("a", "b", "a"), "f:1")
    (row,) = encode_tags([record], made, AB).rows
    assert pieces(row, made)[1] == "Ġ"
    length = len(row.input_ids)
    cut = AB._replace(max_length=length - 1, over_long="truncate")
    assert encode_tags([record], made, cut._replace(piece="first")).rows[0].first[2] >= 0
    assert encode_tags([record], made, cut._replace(piece="last")).rows[0].first[2] == -1  # its last piece is gone


def test_a_tokenizer_that_brings_a_space_gets_none() -> None:
    """Llama 2's would write two spaces before each token, which running text never has."""
    made = tokenizer_of("llama legacy")
    (row,) = encode_tags([TaggedTokens(("a", "cat"), ("a", "b"), "f:1")], made, AB).rows
    assert made.decode(row.input_ids, skip_special_tokens=True) == "a cat"
    (old,) = encode_tags([TaggedTokens(("a", "cat"), ("a", "b"), "f:1")], made, AB._replace(piece="start")).rows
    assert made.decode(old.input_ids, skip_special_tokens=True) == "a  cat"
