"""Return the predictions of models with a head: classes of texts, tags of tokens, answers in texts.

    loaded = load_any("runs/mood/model")
    classify(loaded, ["The pastries were still warm.", "冷氣整晚都在漏水。"])

Texts are read as in the model's training (several labels, windows, the null answer); its configuration states how.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from posttrain.data.batching import length_batches
from posttrain.data.head_rows import (
    HeadSettings,
    SpanRow,
    TagRow,
    TextRow,
    encode_questions,
    encode_tags,
    encode_texts,
    pad,
)
from posttrain.data.lengths import with_mends
from posttrain.data.records import LabelledText, ReadingQuestion, Record, TaggedTokens
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.inference.decode import context_limit
from posttrain.models.adapters import virtual_columns
from posttrain.models.load import LoadedModel
from posttrain.models.meter import MOMENT_S, Meter
from posttrain.models.notes import HEADS, Head, HeadNotes, head_of_model
from posttrain.models.vocabulary import keep_padding_inside, outside, rows_of

__all__ = [
    "Classified",
    "FoundSpan",
    "Tagged",
    "WindowScores",
    "answer_records",
    "answer_spans",
    "best_answer",
    "classify",
    "classify_records",
    "said_labels",
    "said_tags",
    "tag",
    "tag_records",
    "window_scores",
]

BATCH_TOKENS = 8192
"""Number of padded tokens in a forward pass."""
DEFAULT_LENGTH = 512
"""Number of tokens in a row if a model does not state the number that it was trained with."""


class Classified(NamedTuple):
    """The classes of a text. `labels` are the predicted labels, the likeliest first. `probabilities` has
    every label. `truncated` says that the end of the text was not read.
    """

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]
    truncated: bool = False


class Tagged(NamedTuple):
    """The tags of a sentence: one for each token, and its probability."""

    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


class FoundSpan(NamedTuple):
    """The answer to a question.

    `text` is the answer as the context spells it, "" for the null answer. `start` is the index of its first character,
    -1 for the null answer. `score` is the sum of the logits of first and last token. `null_score` is that of the null
    answer.
    """

    text: str
    start: int
    score: float
    null_score: float


def notes_of(loaded: LoadedModel, head: Head) -> HeadNotes:
    """Return the model's notes. Raise PosttrainError if it has another head."""
    notes = head_of_model(loaded.model)
    if notes is None or notes.head != head:
        has = f"a head for {HEADS[notes.head][1]}" if notes is not None else "a language-model head"
        raise PosttrainError(Problem(loaded.name, f"has {has}, not one for {HEADS[head][1]}"))
    return notes


SHORTEN = "shorten it: the model was trained for no more"


def _settings(loaded: LoadedModel, notes: HeadNotes, **more: Any) -> HeadSettings:
    length = min(int(notes.settings.get("max_length", DEFAULT_LENGTH)), context_limit(loaded.model))
    return HeadSettings(notes.labels, length, gold=False, over_long="truncate", **more)


# ---- texts -----------------------------------------------------------------------------------------------------------


def said_labels(
    logits: Tensor, labels: Sequence[str], *, multi_label: bool, threshold: float = 0.5
) -> list[Classified]:
    """Return the labels that logits (B, C) predict. This is the likeliest label, or with `multi_label` every
    label with a probability at or above the threshold.
    """
    values = logits.float()
    chances = values.sigmoid() if multi_label else values.softmax(-1)
    found = []
    for row in chances.tolist():
        order = sorted(range(len(labels)), key=lambda i: -row[i])
        said = [i for i in order if row[i] >= threshold] if multi_label else order[:1]
        found.append(Classified(tuple(labels[i] for i in said), {labels[i]: row[i] for i in order}))
    return found


def classify(loaded: LoadedModel, texts: Sequence[str | tuple[str, str]]) -> list[Classified]:
    """Return the class of each text, or of each pair. A text that is too long is cut at its end and marked
    truncated.
    """
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    records = [LabelledText(one, (), f"text {i + 1}", two, gold=False) for i, (one, two) in enumerate(pairs)]
    return classify_records(loaded, records)


def classify_records(loaded: LoadedModel, records: Sequence[Record]) -> list[Classified]:
    """Return the class of each `LabelledText`, whatever labels it has."""
    notes = notes_of(loaded, "sequence")
    several = bool(notes.settings.get("multi_label", False))
    rows = encode_texts(records, loaded.tokenizer, _settings(loaded, notes, multi_label=several)).rows
    threshold = float(notes.settings.get("threshold", 0.5))
    found: list[Classified] = [Classified((), {})] * len(rows)
    for numbers, out in _passes(loaded, rows):
        said = said_labels(out.logits, notes.labels, multi_label=several, threshold=threshold)
        for i, one in zip(numbers, said, strict=True):
            found[i] = one._replace(truncated=rows[i].truncated)
    return found


# ---- tokens ----------------------------------------------------------------------------------------------------------


def said_tags(logits: Tensor, row: TagRow, labels: Sequence[str]) -> Tagged:
    """Return the likeliest tag of each token, from the logits (T, C) of the piece that represents it. A token
    that the tokenizer turns into nothing gets `O`, or the first tag if there is no `O`, with probability 0.
    """
    chances, best = logits.float().softmax(-1).max(-1)  # (T,)
    chance, number = chances.tolist(), best.tolist()
    nothing = "O" if "O" in labels else labels[0]
    tags = tuple(labels[number[p]] if p >= 0 else nothing for p in row.first)
    return Tagged(tags, tuple(chance[p] if p >= 0 else 0.0 for p in row.first))


def tag(loaded: LoadedModel, sentences: Sequence[Sequence[str]]) -> list[Tagged]:
    """Return a tag for each token of each sentence. Raise DataError that names sentences too long for the model."""
    records = [TaggedTokens(tuple(s), (), f"sentence {i + 1}", gold=False) for i, s in enumerate(sentences)]
    return tag_records(loaded, records)


def tag_records(loaded: LoadedModel, records: Sequence[Record]) -> list[Tagged]:
    """Return a tag for each token of each `TaggedTokens`, whatever tags it has."""
    notes = notes_of(loaded, "token")
    settings = _settings(loaded, notes, piece=notes.settings.get("piece", "start"))._replace(over_long="raise")
    with with_mends(SHORTEN):
        rows = encode_tags(records, loaded.tokenizer, settings).rows
    found: list[Tagged] = [Tagged((), ())] * len(rows)
    for numbers, out in _passes(loaded, rows):
        logits = out.logits[:, virtual_columns(loaded.model) :]
        for i, one in zip(numbers, logits, strict=True):
            found[i] = said_tags(one, rows[i], notes.labels)
    return found


# ---- answers ---------------------------------------------------------------------------------------------------------


class WindowScores(NamedTuple):
    """The best span of a window. It has the span's score, the index of its first character in the text and
    the index after its last one, and the score of the null answer.
    """

    score: float
    first: int
    after: int
    null_score: float


def window_scores(start: Tensor, end: Tensor, row: SpanRow, max_answer_tokens: int) -> WindowScores:
    """Return the best span of a window, from its logits (T,).

    The first token is not after the last one, and a span has at most `max_answer_tokens` tokens. Only pieces of the
    text can be an answer. A window of an empty text has a span with score -inf.
    """
    count = len(row.offsets)
    null = float(start[row.null] + end[row.null])
    if not count:
        return WindowScores(float("-inf"), 0, 0, null)
    within = slice(row.context, row.context + count)
    scores = start[within].float()[:, None] + end[within].float()[None, :]  # (C, C): first by last
    allowed = torch.ones_like(scores, dtype=torch.bool).triu().tril(max_answer_tokens - 1)
    flat = int(scores.masked_fill(~allowed, float("-inf")).argmax())
    first, last = divmod(flat, count)
    return WindowScores(float(scores[first, last]), row.offsets[first][0], row.offsets[last][1], null)


def best_answer(
    windows: Sequence[WindowScores], context: str, *, null_answers: bool, null_threshold: float = 0.0
) -> FoundSpan:
    """Return the best span of all windows of a question, or the null answer. The null answer's score is its
    lowest in any window, as in BERT's SQuAD 2.0 script, because one window that has the answer is enough.
    """
    best = max(windows, key=lambda window: window.score)
    null = min(window.null_score for window in windows)
    if null_answers and null > best.score + null_threshold:
        return FoundSpan("", -1, best.score, null)
    text = context[best.first : best.after]
    start = best.first + len(text) - len(text.lstrip())  # pieces include the space before a word
    return FoundSpan(text.strip(), start, best.score, null)


def answer_spans(loaded: LoadedModel, questions: Sequence[str], contexts: Sequence[str]) -> list[FoundSpan]:
    """Return the answer to each question in its context. Long contexts are read in overlapping windows."""
    records = [
        ReadingQuestion(question, context, (), f"question {i + 1}", gold=False)
        for i, (question, context) in enumerate(zip(questions, contexts, strict=True))
    ]
    return answer_records(loaded, records)


def answer_records(loaded: LoadedModel, records: Sequence[ReadingQuestion]) -> list[FoundSpan]:
    """Return the answer to each question, whatever answers it has."""
    notes = notes_of(loaded, "answer")
    settings = _settings(loaded, notes, doc_stride=int(notes.settings.get("doc_stride", 128)))
    with with_mends(SHORTEN):
        rows = encode_questions(records, loaded.tokenizer, settings._replace(over_long="raise")).rows
    windows: list[list[WindowScores]] = [[] for _ in records]
    longest = int(notes.settings.get("max_answer_tokens", 30))
    skip = virtual_columns(loaded.model)
    for numbers, out in _passes(loaded, rows):
        for i, start, end in zip(numbers, out.start_logits[:, skip:], out.end_logits[:, skip:], strict=True):
            windows[rows[i].number].append(window_scores(start, end, rows[i], longest))
    null_answers = bool(notes.settings.get("null_answers", False))
    threshold = float(notes.settings.get("null_threshold", 0.0))
    return [
        best_answer(found, record.context, null_answers=null_answers, null_threshold=threshold)
        for found, record in zip(windows, records, strict=True)
    ]


RowT = TypeVar("RowT", TextRow, TagRow, SpanRow)


@torch.inference_mode()
def _passes(loaded: LoadedModel, rows: Sequence[RowT]) -> Iterator[tuple[list[int], Any]]:
    """Yield (indices of rows, the model's output) batch by batch, with rows of similar length together."""
    model, known = loaded.model, rows_of(loaded.model)
    problems = [p for row in rows if (p := outside(row.location, row.input_ids, known, loaded.tokenizer)) is not None]
    if problems:
        raise DataError(*problems[:20])
    keep_padding_inside(model, loaded.tokenizer, loaded.name)
    pad_id = int(loaded.tokenizer.pad_token_id)
    lengths = [len(row.input_ids) for row in rows]
    budget = max(BATCH_TOKENS, max(lengths, default=0))
    with Meter("reading the rows", len(rows), "rows", after_s=MOMENT_S, kept=None) as meter:
        for numbers in length_batches(lengths, tokens=budget, seed=0, epoch=0) if rows else []:
            padded = pad([rows[i] for i in numbers], pad_id)
            yield numbers, model(**padded.inputs(model.device))
            meter.more(len(numbers), tokens=sum(lengths[i] for i in numbers))
