"""Preferences and graded answers as rows of token ids.

Both answers of a pair are rendered with the prompt, each as a row of its own would be: what is labelled is the answer
and the token that ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from posttrain.data.chat import IGNORED, Encoded, EncodeResult, LossOn, OverLong, encode_all, outcomes
from posttrain.data.readers import LONG_MEND, data_error, nothing_left
from posttrain.data.records import Completion, Graded, Preference, Record
from posttrain.errors import DataError, Problem, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "GradedRow",
    "PairRow",
    "encode_any",
    "encode_graded",
    "encode_pairs",
    "prompt_length",
    "sequences_of",
]


@dataclass(frozen=True, eq=False)
class PairRow:
    """Two answers after the same prompt; margin: by how much the chosen one is better, 0 where not known.

    Compared by identity, so that what is known of a row can be kept in a dict.
    """

    chosen: Encoded
    rejected: Encoded
    place: str
    margin: float = 0.0


@dataclass(frozen=True, eq=False)
class GradedRow:
    """An answer after its prompt, and whether it is wanted. Compared by identity."""

    answer: Encoded
    label: bool
    place: str


RowT = TypeVar("RowT", PairRow, GradedRow)


def prompt_length(row: Encoded) -> int:
    """Tokens before the answer."""
    return next(i for i, label in enumerate(row.labels) if label != IGNORED)


def encode_pairs(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong = "raise",
    on_bad_row: Literal["fail", "skip"] = "fail",
) -> EncodeResult[PairRow]:
    """All preferences, in order. DataError (TemplateError) names every row that is none or cannot be rendered; a pair
    counts as long as its longer answer."""

    def rows() -> Iterator[PairRow | Problem]:
        pairs = [record.both() if isinstance(record, Preference) else None for record in records]
        rendered = outcomes([one for pair in pairs if pair for one in pair], tokenizer, "assistant")
        for record, pair in zip(records, pairs, strict=True):
            if pair is None or not isinstance(record, Preference):
                yield _not_a_pair(record)
                continue
            chosen, rejected = next(rendered), next(rendered)
            if isinstance(chosen, Problem):
                yield chosen
            elif isinstance(rejected, Problem):
                yield rejected
            else:
                yield PairRow(chosen, rejected, record.place, record.margin or 0.0)

    def sides(row: PairRow) -> list[Encoded]:
        return [row.chosen, row.rejected]

    def cut(row: PairRow) -> PairRow:
        return PairRow(_cut(row.chosen, max_length), _cut(row.rejected, max_length), row.place, row.margin)

    return _gathered(rows(), sides, cut, len(records), max_length, over_long, on_bad_row)


def encode_graded(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong = "raise",
    on_bad_row: Literal["fail", "skip"] = "fail",
) -> EncodeResult[GradedRow]:
    """All graded answers, in order; errors as in `encode_pairs`."""

    def rows() -> Iterator[GradedRow | Problem]:
        rendered = outcomes([r.answered() for r in records if isinstance(r, Graded)], tokenizer, "assistant")
        for record in records:
            if not isinstance(record, Graded):
                yield _not_graded(record)
                continue
            answer = next(rendered)
            yield answer if isinstance(answer, Problem) else GradedRow(answer, record.label, record.place)

    def sides(row: GradedRow) -> list[Encoded]:
        return [row.answer]

    def cut(row: GradedRow) -> GradedRow:
        return GradedRow(_cut(row.answer, max_length), row.label, row.place)

    return _gathered(rows(), sides, cut, len(records), max_length, over_long, on_bad_row)


def encode_any(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong,
    loss_on: LossOn,
    on_bad_row: Literal["fail", "skip"],
) -> EncodeResult[Any]:
    """Preferences as pairs and graded answers as such, where all records are; everything else as `encode_all` does."""
    kinds = {type(record) for record in records}
    if kinds == {Preference}:
        pairs: EncodeResult[Any] = encode_pairs(
            records, tokenizer, max_length=max_length, over_long=over_long, on_bad_row=on_bad_row
        )
        return pairs
    if kinds == {Graded}:
        graded: EncodeResult[Any] = encode_graded(
            records, tokenizer, max_length=max_length, over_long=over_long, on_bad_row=on_bad_row
        )
        return graded
    return encode_all(
        records, tokenizer, max_length=max_length, over_long=over_long, loss_on=loss_on, on_bad_row=on_bad_row
    )


def sequences_of(row: Encoded | PairRow | GradedRow) -> list[Encoded]:
    """What the model reads of a row."""
    if isinstance(row, PairRow):
        return [row.chosen, row.rejected]
    return [row.answer] if isinstance(row, GradedRow) else [row]


def _gathered(
    rows: Iterator[RowT | Problem],
    sides: Callable[[RowT], list[Encoded]],
    cut: Callable[[RowT], RowT],
    count: int,
    max_length: int,
    over_long: OverLong,
    on_bad_row: Literal["fail", "skip"],
) -> EncodeResult[RowT]:
    """The length policy of `encode_all`, for rows of several sequences."""
    good: list[RowT] = []
    bad: list[Problem] = []
    long: list[Problem] = []
    dropped = truncated = 0
    for row in rows:
        if isinstance(row, Problem):
            bad.append(row)
            continue
        longest = max(len(side.input_ids) for side in sides(row))
        if longest > max_length:
            if over_long == "drop":
                dropped += 1
                continue
            if over_long == "raise":
                cause = f"{longest} tokens, more than max_length {max_length}"
                long.append(Problem(row.place, cause, LONG_MEND))
                continue
            row = cut(row)
            truncated += 1
        problem = _useless(row.place, sides(row), cut=longest > max_length)
        if problem is None:
            good.append(row)
        else:
            bad.append(problem)
    if long or (bad and on_bad_row == "fail"):
        found = [*bad, *long] if on_bad_row == "fail" else long
        kinds = [p for p in bad if "template" in p.cause]
        raise data_error(found, count, TemplateError if kinds else DataError, skippable=not long)
    if count == 0:  # of a study's change, say
        cause = "there is nothing to compare: no rows, or every target is answered as wanted already"
        raise DataError(Problem("", cause, "give data, or another change"))
    if not good:
        raise nothing_left(count, dropped, max_length, bad)
    return EncodeResult(good, dropped, truncated, bad)


def _cut(row: Encoded, max_length: int) -> Encoded:
    cut = len(row.input_ids) > max_length
    return row._replace(input_ids=row.input_ids[:max_length], labels=row.labels[:max_length], truncated=cut)


def _useless(place: str, sides: Sequence[Encoded], *, cut: bool) -> Problem | None:
    """What makes a row teach nothing; None when it teaches."""
    how = "once cut to max_length " if cut else ""
    if any(all(label == IGNORED for label in side.labels[1:]) for side in sides):
        return Problem(place, f"{how}an answer has no token", LONG_MEND)
    if len(sides) == 2 and sides[0].input_ids == sides[1].input_ids:
        return Problem(place, f"{how}both answers are the same tokens: nothing to prefer", "remove the row")
    return None


def _not_a_pair(record: Record) -> Problem:
    cause = "'chosen' and 'rejected' are expected, two answers to one prompt"
    if isinstance(record, Graded):
        return Problem(record.place, f"{cause}; this is one graded answer", "objective: kto learns from graded answers")
    mend = "objective: sft learns from conversations and completions; format: preference reads both answers of a row"
    return Problem(record.place, cause, mend)


def _not_graded(record: Any) -> Problem:
    cause = "an answer with 'label' true or false is expected"
    if isinstance(record, Preference):
        mend = "objective: dpo or orpo; or write each answer as a row of its own, with label true or false"
        return Problem(record.place, f"{cause}; this is a preference", mend)
    mend = 'add "label": true or false' if isinstance(record, Completion) else "objective: sft learns from such rows"
    return Problem(record.place, cause, mend)
