"""Encode labelled texts, tagged tokens and questions as token ids, for models with a head.

Tokenizers that have a separator join two texts in their own way (`[CLS] a [SEP] b [SEP]`); for others a line break is
put between the texts. Labels outside the set, rows without a label and other problems are reported all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from posttrain.data.batching import padded
from posttrain.data.control import head_problem
from posttrain.data.lengths import EncodeResult, Limits, OnBadRow, OverLong, TooLong, gathered
from posttrain.data.records import LabelledText, ReadingQuestion, Record, TaggedTokens
from posttrain.data.scripts import is_cjk
from posttrain.data.tokens import IGNORED, Tokenizer
from posttrain.errors import DataError, Problem

__all__ = [
    "HeadSettings",
    "Padded",
    "Piece",
    "SpanRow",
    "TagRow",
    "TextRow",
    "encode_questions",
    "encode_tags",
    "encode_texts",
    "pad",
    "spaced",
    "tag_targets",
]

LEAST_CONTEXT = 8
"""The fewest tokens of a window that a question must leave for the text; otherwise it is too long."""
SHOWN = 8
"""The number of known labels that an error lists."""


class TextRow(NamedTuple):
    """One text, or two texts. types: token types (None if the tokenizer has none); labels: indices of its classes."""

    input_ids: list[int]
    types: list[int] | None
    labels: tuple[int, ...]
    location: str
    truncated: bool = False


class TagRow(NamedTuple):
    """A sentence. first: for each token the index of the piece that stands for it (see `Piece`), -1 if the token has no
    piece or was cut off; tags: the index of each token's tag, empty if the sentence is not tagged yet."""

    input_ids: list[int]
    types: list[int] | None
    first: list[int]
    tags: list[int]
    location: str
    truncated: bool = False


class SpanRow(NamedTuple):
    """A window of a question's text.

    start, end: indices of the answer's first and last piece, both `null` if the window has no answer; context: index of
    the window's first piece of the text; offsets: the characters of the text that each of these pieces covers; number:
    index of the question among the records.
    """

    input_ids: list[int]
    types: list[int] | None
    start: int
    end: int
    null: int
    context: int
    offsets: list[tuple[int, int]]
    record: ReadingQuestion
    number: int
    truncated: bool = False

    @property
    def location(self) -> str:
        """Return the location of the question in its file."""
        return self.record.location


Piece = Literal["first", "last", "start"]
"""The piece that stands for a token. first, last: the first or last piece that has a character of the token; start: the
first piece, even if it is the space before the token, as in taggers that were trained before this setting existed."""


class HeadSettings(NamedTuple):
    """Settings for encoding rows. labels: names of the outputs; max_length: tokens of a row or window; multi_label: a
    text may have several labels; gold: rows must have labels; doc_stride: tokens that two windows share; piece: the
    piece that stands for a tagged token."""

    labels: tuple[str, ...]
    max_length: int
    multi_label: bool = False
    gold: bool = True
    doc_stride: int = 128
    over_long: OverLong = "raise"
    on_bad_row: OnBadRow = "fail"
    piece: Piece = "first"


RowT = TypeVar("RowT", TextRow, TagRow, SpanRow)
RecordT = TypeVar("RecordT", LabelledText, TaggedTokens, ReadingQuestion)

KINDS: dict[type[Record], tuple[str, str]] = {
    LabelledText: ("no labelled text", '{"text": ..., "label": ...}'),
    TaggedTokens: ("no tagged tokens", '{"tokens": [...], "tags": [...]}'),
    ReadingQuestion: ("no question about a text", '{"question": ..., "context": ..., "answers": [...]}'),
}
"""Kind of record that is expected -> cause and mend of the problem of another record."""
LACKING: dict[type[Record], tuple[str, str]] = {
    LabelledText: ("no 'label'", 'add "label": "..."'),
    TaggedTokens: ("no 'tags'", 'add "tags": [...], one for each token'),
    ReadingQuestion: ("no 'answers'", 'add "answers": [...], an empty list where the text has none'),
}
"""Kind of record -> cause and mend of the problem of a record without labels."""


def _checked(found: Iterator[RowT | Problem | TooLong], records: int, settings: HeadSettings) -> EncodeResult[RowT]:
    if not records:
        return EncodeResult([], [], [], 0)
    return gathered(found).checked(records, Limits(settings.max_length, settings.over_long, settings.on_bad_row))


def _usable(
    records: Sequence[Record], kind: type[RecordT], tokenizer: Tokenizer, settings: HeadSettings
) -> Iterator[RecordT | Problem]:
    """Yield each record, or its problem: it is of another kind, has no or unknown labels, or has a control token."""
    for record in records:
        if not isinstance(record, kind):
            yield Problem(record.location, *KINDS[kind])
        elif settings.gold and not record.gold:
            yield Problem(record.location, *LACKING[kind])
        else:
            wrong = _label_problem(record, settings) if settings.gold else None
            yield wrong or head_problem(record, tokenizer) or record


def _label_problem(record: LabelledText | TaggedTokens | ReadingQuestion, settings: HeadSettings) -> Problem | None:
    if isinstance(record, ReadingQuestion):
        return None
    if isinstance(record, LabelledText) and not settings.multi_label and len(record.labels) != 1:
        cause = f"{len(record.labels)} labels, where each text has one"
        return Problem(record.location, cause, "multi_label: true, where a text may have several")
    labels = settings.labels
    said = record.labels if isinstance(record, LabelledText) else record.tags
    label = next((one for one in said if one not in labels), None)
    if label is None:
        return None
    near = get_close_matches(label, labels, n=1)
    known = ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
    mend = f"did you mean '{near[0]}'? known: {known}" if near else f"known: {known}; or add it to labels"
    return Problem(record.location, f"the label '{label}' is not among the {len(labels)} labels", mend)


def _fast(tokenizer: Tokenizer) -> None:
    if not tokenizer.is_fast:
        cause = "does not tell which characters a token stands for"
        raise DataError(Problem(type(tokenizer).__name__, cause, "take a model with a tokenizer.json"))


def _typed(tokenizer: Tokenizer) -> bool:
    return "token_type_ids" in tokenizer.model_input_names


# ---- texts -----------------------------------------------------------------------------------------------------------


def encode_texts(records: Sequence[Record], tokenizer: Tokenizer, settings: HeadSettings) -> EncodeResult[TextRow]:
    """Return one row per labelled text. Raise DataError, which names rows with labels outside the set."""
    return _checked(_texts(records, tokenizer, settings), len(records), settings)


def _texts(
    records: Sequence[Record], tokenizer: Tokenizer, settings: HeadSettings
) -> Iterator[TextRow | Problem | TooLong]:
    number = {label: i for i, label in enumerate(settings.labels)}
    read = partial(tokenizer, return_token_type_ids=_typed(tokenizer), verbose=False)
    for record in _usable(records, LabelledText, tokenizer, settings):
        if isinstance(record, Problem):
            yield record
            continue
        # without gold, the labels may be of any set
        labels = tuple(number[label] for label in record.labels) if settings.gold else ()
        texts = _joined(record, tokenizer)
        found = read(*texts)
        length = len(found["input_ids"])
        if length > settings.max_length and settings.over_long != "truncate":
            yield TooLong(record.location, length)
            continue
        if truncated := length > settings.max_length:
            found = read(*texts, truncation=True, max_length=settings.max_length)
        if not found["input_ids"]:
            yield Problem(record.location, "the tokenizer makes no token of the text", "remove the row")
            continue
        yield TextRow(found["input_ids"], found.get("token_type_ids"), labels, record.location, truncated)


def _joined(record: LabelledText, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return one text, or two texts for tokenizers that take pairs."""
    if record.text2 is None:
        return (record.text,)
    return (record.text, record.text2) if tokenizer.sep_token is not None else (f"{record.text}\n{record.text2}",)


# ---- tokens ----------------------------------------------------------------------------------------------------------


def encode_tags(records: Sequence[Record], tokenizer: Tokenizer, settings: HeadSettings) -> EncodeResult[TagRow]:
    """Return one row per sentence. Raise DataError, which names sentences with tags outside the set."""
    _fast(tokenizer)
    return _checked(_sentences(records, tokenizer, settings), len(records), settings)


def _sentences(
    records: Sequence[Record], tokenizer: Tokenizer, settings: HeadSettings
) -> Iterator[TagRow | Problem | TooLong]:
    number = {label: i for i, label in enumerate(settings.labels)}
    own_space = settings.piece != "start" and _doubles_spaces(tokenizer)
    blank: dict[int, bool] = {}
    read = partial(tokenizer, is_split_into_words=True, return_token_type_ids=_typed(tokenizer), verbose=False)
    for record in _usable(records, TaggedTokens, tokenizer, settings):
        if isinstance(record, Problem):
            yield record
            continue
        words = list(record.tokens) if own_space else spaced(record.tokens)
        found = read(words)
        whole, length = _pieces(found, len(words)), len(found["input_ids"])
        if length > settings.max_length and settings.over_long != "truncate":
            yield TooLong(record.location, length)
            continue
        if truncated := length > settings.max_length:
            found = read(words, truncation=True, max_length=settings.max_length)
        left = _pieces(found, len(words))
        for id_ in set(found["input_ids"]) - blank.keys():
            blank[id_] = not tokenizer.decode([id_], clean_up_tokenization_spaces=False).strip()
        first = [
            -1 if settings.piece == "last" and len(own) < len(all_of) else _standing(own, found, settings.piece, blank)
            for own, all_of in zip(left, whole, strict=True)
        ]
        if all(position < 0 for position in first):
            yield Problem(record.location, "the tokenizer makes no token of the sentence", "remove the row")
            continue
        tags = [number[tag] for tag in record.tags] if settings.gold else []
        yield TagRow(found["input_ids"], found.get("token_type_ids"), first, tags, record.location, truncated)


def _pieces(found: Any, words: int) -> list[list[int]]:
    """Return the indices of the pieces of each token."""
    pieces: list[list[int]] = [[] for _ in range(words)]
    for position, word in enumerate(found.word_ids()):
        if word is not None:
            pieces[word].append(position)
    return pieces


def _standing(pieces: Sequence[int], found: Any, piece: Piece, blank: Mapping[int, bool]) -> int:
    """Return the index of the piece that stands for a token, -1 if it has none. Spaces are skipped if possible."""
    if not pieces:
        return -1
    if piece == "start":
        return pieces[0]
    written = [at for at in pieces if not blank[found["input_ids"][at]]] or pieces
    return written[0] if piece == "first" else written[-1]


def _doubles_spaces(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer puts a space before every text, even if it begins with a space (Llama 2's does)."""
    ids = tokenizer.encode(" a", add_special_tokens=False)
    return "".join(tokenizer.convert_ids_to_tokens(ids)).startswith("▁▁")


def spaced(tokens: Sequence[str]) -> list[str]:
    """Return the tokens, each with the space that running text has before it. The first token has none, and neither has
    a token next to a Chinese or Japanese character. So pieces never span two tokens.
    """
    return [
        f" {token}" if i and not is_cjk(token[0]) and not is_cjk(tokens[i - 1][-1]) else token
        for i, token in enumerate(tokens)
    ]


# ---- questions -------------------------------------------------------------------------------------------------------


def encode_questions(records: Sequence[Record], tokenizer: Tokenizer, settings: HeadSettings) -> EncodeResult[SpanRow]:
    """Return one row for each window of a question's text; a long text has several windows. Raise DataError."""
    _fast(tokenizer)
    if tokenizer.sep_token is None and tokenizer.eos_token is None:
        raise DataError(Problem(type(tokenizer).__name__, "has neither a separator nor an end token", "add one"))
    windows = _paired if tokenizer.sep_token is not None and tokenizer.cls_token is not None else _in_line
    return _checked(_questions(records, tokenizer, settings, windows), len(records), settings)


def _questions(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    settings: HeadSettings,
    windows: Callable[[ReadingQuestion, Tokenizer, HeadSettings], list[SpanRow] | TooLong],
) -> Iterator[SpanRow | Problem | TooLong]:
    for i, record in enumerate(_usable(records, ReadingQuestion, tokenizer, settings)):
        made = record if isinstance(record, Problem) else windows(record, tokenizer, settings)
        if isinstance(made, list):
            yield from (_with_target(window, i) for window in made)
        else:
            yield made


def _with_target(window: SpanRow, number: int) -> SpanRow:
    """Return the window with the indices of the first answer that is completely in it, if there is one."""
    for text, first in window.record.answers:
        after = first + len(text)
        inside = [i for i, (a, b) in enumerate(window.offsets) if a < after and b > first]
        if inside and window.offsets[inside[0]][0] <= first and window.offsets[inside[-1]][1] >= after:
            start, end = window.context + inside[0], window.context + inside[-1]
            return window._replace(start=start, end=end, number=number)
    return window._replace(number=number)


def _room(question: int, marks: int, record: ReadingQuestion, settings: HeadSettings) -> int | TooLong:
    """Return how many tokens of a window are left for the text, or TooLong when they are fewer than LEAST_CONTEXT."""
    room = settings.max_length - question - marks
    return room if room >= LEAST_CONTEXT else TooLong(record.location, question + marks + LEAST_CONTEXT)


def _paired(record: ReadingQuestion, tokenizer: Tokenizer, settings: HeadSettings) -> list[SpanRow] | TooLong:
    """Return windows [CLS] question [SEP] text [SEP], as the tokenizer writes them; null is the index of [CLS]."""
    question = record.question.strip()
    length = len(tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
    room = _room(length, tokenizer.num_special_tokens_to_add(pair=True), record, settings)
    if isinstance(room, TooLong):
        return room
    found = tokenizer(
        question,
        record.context,
        truncation="only_second",
        max_length=settings.max_length,
        stride=min(settings.doc_stride, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=_typed(tokenizer),
    )
    made = []
    for i, ids in enumerate(found["input_ids"]):
        mine = [position for position, part in enumerate(found.sequence_ids(i)) if part == 1]
        if not mine:  # an empty window at the end
            continue
        types = found["token_type_ids"][i] if _typed(tokenizer) else None
        offsets = [(int(a), int(b)) for a, b in (found["offset_mapping"][i][p] for p in mine)]
        null = ids.index(tokenizer.cls_token_id)
        made.append(SpanRow(ids, types, null, null, null, mine[0], offsets, record, 0))
    return made


def _in_line(record: ReadingQuestion, tokenizer: Tokenizer, settings: HeadSettings) -> list[SpanRow] | TooLong:
    """Return windows of question, line break, text and end token; null is the index of the end token."""
    end = int(tokenizer.eos_token_id)
    head = list(tokenizer(f"{record.question.strip()}\n", verbose=False)["input_ids"])
    if head and head[-1] == end:  # some tokenizers end every text
        head.pop()
    room = _room(len(head), 1, record, settings)
    if isinstance(room, TooLong):
        return room
    found = tokenizer(record.context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = found["input_ids"], [(int(a), int(b)) for a, b in found["offset_mapping"]]
    step = room - min(settings.doc_stride, room // 2)
    made = []
    for first in range(0, max(len(ids), 1), step):
        piece = ids[first : first + room]
        row = [*head, *piece, end]
        null = len(row) - 1
        part = offsets[first : first + room]
        made.append(SpanRow(row, None, null, null, null, len(head), part, record, 0))
        if first + room >= len(ids):
            break
    return made


# ---- tensors ---------------------------------------------------------------------------------------------------------


class Padded(NamedTuple):
    """A batch, padded on the right. input_ids, attention_mask, types (None if there are no token types): (B, T)."""

    input_ids: Tensor
    attention_mask: Tensor
    types: Tensor | None

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return the keyword arguments for a model's forward pass, on a device."""
        found = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.types is not None:
            found["token_type_ids"] = self.types
        return {key: value.to(device) for key, value in found.items()}


def pad(rows: Sequence[TextRow | TagRow | SpanRow], pad_id: int) -> Padded:
    """Return rows as tensors. pad_id: the model's padding id, by which a decoder's head finds the last real token."""
    ids = padded([row.input_ids for row in rows], pad_id)
    mask = padded([[1] * len(row.input_ids) for row in rows], 0)
    return Padded(ids, mask, None if rows[0].types is None else padded([row.types or [] for row in rows], 0))


def tag_targets(rows: Sequence[TagRow], longest: int) -> Tensor:
    """Return int64 targets (B, T): the tag's index at the piece that stands for each token, and -100 elsewhere."""
    targets = torch.full((len(rows), longest), IGNORED)
    for i, row in enumerate(rows):
        for position, tag in zip(row.first, row.tags, strict=True):
            if position >= 0:
                targets[i, position] = tag
    return targets
