"""Show what training would read from a data file: rendered text with its supervised parts, lengths, and stop token.

`posttrain data show` and `data check` print this. It is computed by the functions that training uses.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from posttrain.data.answers import encodings_of, sequences_of
from posttrain.data.chat import IGNORED, Encoded, LossOn, outcomes
from posttrain.data.lengths import EncodeResult, Limits, OverLong, gathered
from posttrain.data.readers import ReadResult
from posttrain.data.records import Record, texts_of
from posttrain.data.template import ChatTemplate
from posttrain.data.tokens import Tokenizer, text_of
from posttrain.errors import DataError, Problem, TemplateError
from posttrain.models.vocabulary import outside

__all__ = [
    "Counted",
    "Lengths",
    "Segment",
    "StopCheck",
    "check_prompt",
    "check_stop",
    "count",
    "lengths_of",
    "segments",
    "survey",
    "unknown_tokens",
]


class Segment(NamedTuple):
    """Consecutive tokens as text, special tokens included. supervised: whether they are in the loss."""

    text: str
    supervised: bool


class Lengths(NamedTuple):
    """Statistics of row lengths, in tokens. over: how many rows are longer than max_length."""

    min: int
    median: int
    p95: int
    max: int
    total: int
    over: int


class StopCheck(NamedTuple):
    """ends: the tokens that end supervised turns; stops: the tokens at which generation stops; problem: "" if none."""

    ends: tuple[str, ...]
    stops: tuple[str, ...]
    problem: str


def survey(records: Sequence[Record], tokenizer: Tokenizer, *, loss_on: LossOn = "assistant") -> EncodeResult[Encoded]:
    """Render every record, of any length, and return the rows and problems. Each answer of a preference is a row."""
    return gathered(outcomes([text for record in records for text in texts_of(record)], tokenizer, loss_on))


class Counted(NamedTuple):
    """How training would use a file. usable, bad, too_long, dropped, truncated: numbers of rows; texts: sequences of
    usable rows; problems: of the bad rows; error: why training would refuse the file even if bad rows are skipped."""

    rows: int
    usable: int
    bad: int
    too_long: int
    dropped: int
    truncated: int
    texts: list[Encoded]
    problems: list[Problem]
    error: DataError | None = None

    def numbers(self) -> dict[str, int]:
        """Return all counts by name, with the numbers of tokens and of supervised tokens."""
        rows = {name: value for name, value in self._asdict().items() if isinstance(value, int)}
        tokens = sum(len(text.input_ids) for text in self.texts)
        supervised = sum(label != IGNORED for text in self.texts for label in text.labels)
        return {**rows, "tokens": tokens, "supervised_tokens": supervised}


def count(
    read: ReadResult,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    over_long: OverLong,
    loss_on: LossOn,
    known: int | None = None,
) -> Counted:
    """Render every row as training would, without the bad rows, and count them. No error is raised, even when no row is
    left. known: how many token embeddings the model has, None if not known.
    """
    bad = list(read.problems)
    if not read.records:
        return Counted(read.rows, 0, len(bad), 0, 0, 0, [], bad)
    limits = Limits(max_length, over_long, "skip")
    found = encodings_of(read.records, tokenizer, limits, loss_on)
    error: DataError | None = None
    try:
        found.checked(len(read.records), limits, TemplateError)
    except DataError as refused:  # rows are too long, or no row is left
        error = refused
    texts = [text for row in found.rows for text in sequences_of(row)]
    unknown = {problem.location: problem for problem in unknown_tokens(texts, tokenizer, known)}
    bad += [*found.problems, *unknown.values()]
    return Counted(
        rows=read.rows,
        usable=len(found.rows) - len(unknown),
        bad=len(bad),
        too_long=len(found.long) if over_long == "raise" else 0,
        dropped=len(found.long) if over_long == "drop" else 0,
        truncated=found.truncated,
        texts=[text for text in texts if text.location not in unknown],
        problems=bad,
        error=error,
    )


def segments(row: Encoded, tokenizer: Tokenizer) -> list[Segment]:
    """Return a row as alternating segments of supervised and unsupervised text."""
    runs = groupby(zip(row.input_ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    return [Segment(text_of([token for token, _ in run], tokenizer), supervised) for supervised, run in runs]


def lengths_of(rows: Sequence[Encoded], max_length: int) -> Lengths:
    """Return the length statistics of one or more rows. p95: the least length that 95 % of the rows do not exceed."""
    lengths = sorted(len(row.input_ids) for row in rows)
    p95 = lengths[-(-95 * len(lengths) // 100) - 1]
    over = sum(length > max_length for length in lengths)
    return Lengths(lengths[0], int(statistics.median_low(lengths)), p95, lengths[-1], sum(lengths), over)


def unknown_tokens(rows: Sequence[Encoded], tokenizer: Tokenizer, known: int | None) -> list[Problem]:
    """Return the problems of rows with tokens that have no embedding. known: number of embeddings, or None."""
    if known is None:
        return []
    found = (outside(row.location, row.input_ids, known, tokenizer) for row in rows)
    return [problem for problem in found if problem is not None]


def check_stop(rows: Sequence[Encoded], tokenizer: Tokenizer, stops: Sequence[int]) -> StopCheck:
    """Check that generation stops at every token that ends a supervised turn; else the model would continue its answer.
    stops: the model's end-of-sequence ids (`models.load.stop_ids`).
    """
    ends = sorted({end for row in rows for end in _ends(row)})
    names = tuple(str(tokenizer.convert_ids_to_tokens(i)) for i in ends)
    stop_names = tuple(str(tokenizer.convert_ids_to_tokens(i)) for i in stops)
    lacking = [name for i, name in zip(ends, names, strict=True) if i not in stops]
    problem = ""
    if not ends:
        problem = "no supervised turn"
    elif lacking:
        problem = (
            f"turns end with {', '.join(lacking)}, but generation stops at {', '.join(stop_names) or 'nothing'}: "
            f"add it to eos_token_id in generation_config.json"
        )
    return StopCheck(names, stop_names, problem)


def check_prompt(tokenizer: Tokenizer) -> str:
    """Return how the generation prompt differs from the trained text, or "" when it does not or there is no template.
    DeepSeek-R1's template makes generation begin with `<think>`, but renders past answers without it.
    """
    if not tokenizer.chat_template:
        return ""
    try:
        return ChatTemplate(tokenizer).prompt_problem()
    except TemplateError as error:
        return str(error)


def _ends(row: Encoded) -> set[int]:
    """Return the last tokens of all supervised segments. Adjacent turns count as one segment."""
    following = [*row.labels[1:], IGNORED]
    if row.truncated:
        following[-1] = row.labels[-1]  # the last segment was cut off before its end
    return {label for label, after in zip(row.labels, following, strict=True) if label != IGNORED and after == IGNORED}
