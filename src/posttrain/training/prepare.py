"""From a configuration to encoded rows: read, render, hold out, and count aloud what was dropped."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain import registry
from posttrain.config.base import Config
from posttrain.data.answers import sequences_of
from posttrain.data.chat import Encoded, encode_all
from posttrain.data.grouped import grouped
from posttrain.data.lengths import EncodeResult
from posttrain.data.readers import DataSource, ReadResult, data_error, read_records
from posttrain.data.records import Completion, Conversation
from posttrain.errors import DataError, Problem
from posttrain.inference.decode import context_limit
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.models.vocabulary import outside, rows_of
from posttrain.retention.selection import NO_TASK, ReplayConfig, ReplayContext, Task
from posttrain.training.config import TrainConfig
from posttrain.training.forms import form_of
from posttrain.training.forms.base import EncodeSettings, Form
from posttrain.training.forms.on_policy import AskedRow
from posttrain.tuners._virtual import VirtualTokens

__all__ = [
    "check_tokens",
    "hold_out",
    "longest_row",
    "longest_within",
    "make_replay",
    "read_rows",
    "read_source",
    "rows_fingerprint",
]

LISTED = 5
"""Faults of skipped rows that are named; the rest is counted."""


def longest_row(config: TrainConfig, model: PreTrainedModel) -> int:
    """The longest row allowed: `max_length`, or what the model was made for, virtual tokens included."""
    return longest_within(config.max_length, config.tuner, context_limit(model))


def longest_within(max_length: int, tuner: Config, positions: int) -> int:
    """The longest row allowed for a model of so many positions."""
    return min(max_length, positions - (tuner.tokens if isinstance(tuner, VirtualTokens) else 0))


def read_source(source: DataSource, config: TrainConfig) -> ReadResult:
    """Records, as the objective's form reads them where the source does not say what its rows hold."""
    if source.format == "auto":
        source = source.model_copy(update={"format": form_of(config.objective).reads})
    return read_records(source, on_bad_row=config.on_bad_row)


def read_rows(
    source: DataSource, loaded: LoadedModel, config: TrainConfig, *, max_length: int, say: Callable[[str], None]
) -> list[Any]:
    """Rows of a file or data set, as the objective's form has them. DataError with every bad row; dropped and cut rows
    are counted.
    """
    tokenizer = loaded.tokenizer
    form = form_of(config.objective)
    read = read_source(source, config)
    settings = EncodeSettings(config.objective, max_length, config.over_long, config.on_bad_row)
    encoded: EncodeResult[Any] = form.encode(read.records, tokenizer, settings)
    unknown = {
        at: problem for at, row in enumerate(encoded.rows) if (problem := unknown_token(row, loaded)) is not None
    }
    if unknown and (config.on_bad_row == "fail" or len(unknown) == len(encoded.rows)):
        raise data_error(list(unknown.values()), read.rows)
    encoded = encoded._replace(rows=[row for at, row in enumerate(encoded.rows) if at not in unknown])
    tokens = sum(form.tokens_of(row) for row in encoded.rows)
    skipped = [*read.problems, *encoded.problems, *unknown.values()]
    say(f"{source.path or source.hub}: recognised as {read.recognised()}")
    for note in read.notes:
        say(f"  {note}")
    say(
        f"{source.path or source.hub}: {read.rows} rows read, {len(skipped)} bad ones skipped; "
        f"longer than {max_length} tokens: {encoded.dropped} dropped, {encoded.truncated} cut; "
        f"{len(encoded.rows)} rows with {tokens:,} tokens to learn from"
    )
    groups = grouped(skipped)
    for problem, _ in groups[:LISTED]:
        say(f"  skipped {problem}")
    if more := sum(count for _, count in groups[LISTED:]):
        say(f"  and {more} more")
    return encoded.rows


def unknown_token(row: Any, loaded: LoadedModel) -> Problem | None:
    """What is wrong with a row that holds a token that the model has no embedding for."""
    if isinstance(row, AskedRow):
        sequences = [row.prompt, row.shown, row.demonstration]
    else:
        sequences = [one.input_ids for one in sequences_of(row)]
    known = rows_of(loaded.model)
    found = (outside(row.location, ids, known, loaded.tokenizer) for ids in sequences)
    return next((problem for problem in found if problem is not None), None)


def check_tokens(rows: Sequence[Any], loaded: LoadedModel) -> None:
    """DataError for rows, wherever they come from, with tokens that the model has no embeddings for."""
    unknown = [problem for row in rows if (problem := unknown_token(row, loaded)) is not None]
    if unknown:
        raise data_error(unknown, len(rows), skippable=False)


def talks_of(config: TrainConfig) -> list[Conversation]:
    """The rows of `data` as conversations, those that are none left out."""
    if config.data is None:
        return []
    records = read_records(config.data, on_bad_row=config.on_bad_row).records
    made = [r.as_conversation() if isinstance(r, Completion) else r for r in records]
    return [talk for talk in made if isinstance(talk, Conversation)]


def lessons(
    config: TrainConfig, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, places: Collection[str]
) -> list[Any]:
    """What the replay wants learned beside the rows of these places."""
    if not isinstance(config.replay, ReplayConfig) or not config.replay.of_tasks:
        return []
    made = config.replay.lessons([talk for talk in talks_of(config) if talk.location in places], task)
    settings = EncodeSettings(config.objective, max_length, config.over_long)
    rows: list[Any] = form_of(config.objective).encode(made, tokenizer, settings).rows if made else []
    return rows


def make_replay(
    config: TrainConfig,
    loaded: LoadedModel,
    max_length: int,
    base: Path,
    say: Callable[[str], None],
    task: Task = NO_TASK,
) -> list[Encoded]:
    """Old rows as `config.replay` says, made by the model as it is now: call this before anything trains. Nothing where
    there is no earlier task to replay.
    """
    assert isinstance(config.replay, ReplayConfig)
    respondent = ModelRespondent(loaded)
    context = ReplayContext(respondent, respondent.fingerprint, seed=config.seed, base=base, say=say, task=task)
    conversations = registry.load("replay", config.replay.kind).function(config.replay, context)
    if not conversations:  # it said why
        return []
    # own answers are as long as they are; a row that does not fit is counted, not an error of the user's
    encoded = encode_all(conversations, loaded.tokenizer, max_length=max_length, over_long="drop", on_bad_row="skip")
    say(
        f"replay: {len(encoded.rows)} rows, {encoded.dropped} longer than {max_length} tokens left out, "
        f"{len(encoded.problems)} bad ones skipped"
    )
    return encoded.rows


def hold_out(rows: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """(training rows, validation rows): a random share, at least one row each. Rows of one place, such as the windows
    of a long text, stay together. DataError with fewer than two of them.
    """
    places = list(dict.fromkeys(row.location for row in rows))
    if len(places) < 2:
        raise DataError(Problem(rows[0].location, "one row cannot be split", "give more rows, or a validation file"))
    order = list(range(len(places)))
    random.Random(f"validation {seed}").shuffle(order)
    count = min(max(round(share * len(places)), 1), len(places) - 1)
    held = {places[i] for i in order[:count]}
    return [row for row in rows if row.location not in held], [row for row in rows if row.location in held]


def rows_fingerprint(rows: Sequence[Any], form: Form) -> str:
    """First 16 hex digits of the sha256 over all that decides the rows' losses; "none" without rows."""
    if not rows:
        return "none"
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array("q", form.numbers(row)).tobytes())
    return digest.hexdigest()[:16]
