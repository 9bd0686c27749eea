"""Encode preferences and graded answers as rows of token ids.

Each answer of a pair is rendered with the prompt, like a row of its own; the answer and its end token have labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from posttrain.data.chat import IGNORED, Encoded, LossOn, Outcome, fitted, outcomes
from posttrain.data.lengths import LONG_MEND, EncodeResult, Limits, TooLong, gathered
from posttrain.data.records import Completion, Graded, Preference, Record
from posttrain.data.tokens import Tokenizer
from posttrain.errors import DataError, Problem, TemplateError

__all__ = [
    "GradedRow",
    "PairRow",
    "encode_graded",
    "encode_pairs",
    "encodings_of",
    "one_answer_each",
    "prompt_length",
    "sequences_of",
]


@dataclass(frozen=True, eq=False)
class PairRow:
    """Two answers after the same prompt. margin: by how much the chosen answer is better, 0 if not known. Rows are
    compared by identity, so that they can be keys of a dict."""

    chosen: Encoded
    rejected: Encoded
    location: str
    margin: float = 0.0

    @property
    def truncated(self) -> bool:
        """Return whether one of the answers was cut."""
        return self.chosen.truncated or self.rejected.truncated


@dataclass(frozen=True, eq=False)
class GradedRow:
    """An answer after its prompt. label: whether it is wanted. Rows are compared by identity."""

    answer: Encoded
    label: bool
    location: str

    @property
    def truncated(self) -> bool:
        """Return whether the answer was cut."""
        return self.answer.truncated


RowT = TypeVar("RowT", PairRow, GradedRow)


def prompt_length(row: Encoded) -> int:
    """Return the number of tokens before the answer."""
    return next(i for i, label in enumerate(row.labels) if label != IGNORED)


def one_answer_each(rows: Sequence[Any]) -> list[Any]:
    """Return rows in which each sequence has a prompt and one answer. A row of tokens with several answers becomes a
    row for each answer, which ends with it: the model reads what was said before as it does when it answers. Raise
    DataError for rows without a prompt, and for pairs and graded answers with several answers.
    """
    made: list[Any] = []
    wrong: list[Problem] = []
    for row in rows:
        if not isinstance(row, Encoded | PairRow | GradedRow):
            made.append(row)  # it has no labels: a text with a class, or a question that the model answers in training
            continue
        found = [_answers(one.labels) for one in sequences_of(row)]
        if any(not answers or answers[0].start == 0 for answers in found):
            cause = "nothing stands before its first learned token, so it has no prompt"
            wrong.append(Problem(row.location, cause, "give a prompt and a completion, or use another tuner"))
        elif isinstance(row, Encoded):
            made += [row] if len(found[0]) == 1 else [_only(row, answer) for answer in found[0]]
        elif any(len(answers) > 1 for answers in found):
            mend = 'give earlier answers "train": false, or use another tuner'
            wrong.append(Problem(row.location, "it has several answers, and one prompt is compared", mend))
        else:
            made.append(row)
    if wrong:
        raise DataError(*wrong[:20])
    return made


def _answers(labels: Sequence[int]) -> list[slice]:
    """Return the stretches of learned tokens."""
    edges = [at for at, (a, b) in enumerate(pairwise([IGNORED, *labels, IGNORED])) if (a == IGNORED) != (b == IGNORED)]
    return [slice(first, after) for first, after in zip(edges[::2], edges[1::2], strict=True)]


def _only(row: Encoded, answer: slice) -> Encoded:
    """Return the row up to the end of one of its answers, which alone is learned."""
    labels = [IGNORED] * answer.start + row.labels[answer]
    return row._replace(input_ids=row.input_ids[: answer.stop], labels=labels)


def encode_pairs(records: Sequence[Record], tokenizer: Tokenizer, limits: Limits) -> EncodeResult[PairRow]:
    """Return all preferences as rows, in order. The length of a pair is the length of its longer answer. Raise
    DataError (TemplateError), which names every row that is no preference or cannot be rendered.
    """
    return _checked(_pairs(records, tokenizer, limits), len(records), limits)


def _pairs(records: Sequence[Record], tokenizer: Tokenizer, limits: Limits) -> Iterator[PairRow | Problem | TooLong]:
    pairs = [record.both() for record in records if isinstance(record, Preference)]
    rendered = outcomes([one for pair in pairs for one in pair], tokenizer, "assistant")
    for record in records:
        if not isinstance(record, Preference):
            yield _not_a_pair(record)
            continue
        sides = _fitted([next(rendered), next(rendered)], record.location, limits)
        yield PairRow(sides[0], sides[1], record.location, record.margin or 0.0) if isinstance(sides, list) else sides


def encode_graded(records: Sequence[Record], tokenizer: Tokenizer, limits: Limits) -> EncodeResult[GradedRow]:
    """Return all graded answers as rows, in order. Raise the errors of `encode_pairs`."""
    return _checked(_graded(records, tokenizer, limits), len(records), limits)


def _graded(records: Sequence[Record], tokenizer: Tokenizer, limits: Limits) -> Iterator[GradedRow | Problem | TooLong]:
    rendered = outcomes([r.answered() for r in records if isinstance(r, Graded)], tokenizer, "assistant")
    for record in records:
        if not isinstance(record, Graded):
            yield _not_graded(record)
            continue
        sides = _fitted([next(rendered)], record.location, limits)
        yield GradedRow(sides[0], record.label, record.location) if isinstance(sides, list) else sides


def encodings_of(records: Sequence[Record], tokenizer: Tokenizer, limits: Limits, loss_on: LossOn) -> EncodeResult[Any]:
    """Return pairs if all records are preferences, graded rows if all are graded, else rows as `encode_all` makes them.
    Nothing is raised for bad rows: the result holds their problems.
    """
    kinds = {type(record) for record in records}
    if kinds == {Preference}:
        return gathered(_pairs(records, tokenizer, limits))
    if kinds == {Graded}:
        return gathered(_graded(records, tokenizer, limits))
    return gathered(fitted(records, tokenizer, limits, loss_on))


def sequences_of(row: Encoded | PairRow | GradedRow) -> list[Encoded]:
    """Return the sequences of a row that the model reads."""
    if isinstance(row, PairRow):
        return [row.chosen, row.rejected]
    return [row.answer] if isinstance(row, GradedRow) else [row]


def _checked(found: Iterator[RowT | Problem | TooLong], records: int, limits: Limits) -> EncodeResult[RowT]:
    if records == 0:  # such as the rows made for a study's change
        cause = "there is nothing to compare: no rows, or every target is answered as wanted already"
        raise DataError(Problem("", cause, "give data, or another change"))
    return gathered(found).checked(records, limits, TemplateError)


def _fitted(sides: Sequence[Outcome], location: str, limits: Limits) -> list[Encoded] | Problem | TooLong:
    """Return the answers of a row, cut if that is allowed, or the row's problem, or TooLong."""
    wrong = next((side for side in sides if isinstance(side, Problem)), None)
    if wrong is not None:
        return wrong
    whole = [side for side in sides if isinstance(side, Encoded)]
    longest = max(len(side.input_ids) for side in whole)
    if longest > limits.max_length and limits.over_long != "truncate":
        return TooLong(location, longest)
    cut = [side.cut(limits.max_length) for side in whole]
    return _useless(location, cut) or cut


def _useless(location: str, sides: Sequence[Encoded]) -> Problem | None:
    """Return the problem of a row from which nothing can be learned, else None."""
    how = "once cut to max_length " if any(side.truncated for side in sides) else ""
    if any(all(label == IGNORED for label in side.labels[1:]) for side in sides):
        return Problem(location, f"{how}an answer has no token", LONG_MEND)
    if len(sides) == 2 and sides[0].input_ids == sides[1].input_ids:
        return Problem(location, f"{how}both answers are the same tokens: nothing to prefer", "remove the row")
    return None


def _not_a_pair(record: Record) -> Problem:
    cause = "'chosen' and 'rejected' are expected, two answers to one prompt"
    if isinstance(record, Graded):
        mend = "objective: kto learns from graded answers"
        return Problem(record.location, f"{cause}; this is one graded answer", mend)
    mend = "objective: sft learns from conversations and completions; format: preference reads both answers of a row"
    return Problem(record.location, cause, mend)


def _not_graded(record: Any) -> Problem:
    cause = "an answer with 'label' true or false is expected"
    if isinstance(record, Preference):
        mend = "objective: dpo or orpo; or write each answer as a row of its own, with label true or false"
        return Problem(record.location, f"{cause}; this is a preference", mend)
    mend = 'add "label": true or false' if isinstance(record, Completion) else "objective: sft learns from such rows"
    return Problem(record.location, cause, mend)
