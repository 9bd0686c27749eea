"""Prepare the rows of a run: read, encode and hold out new rows, make replay rows, and report what is dropped."""

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
from posttrain.data.answers import one_answer_each, sequences_of
from posttrain.data.chat import Encoded, encode_all
from posttrain.data.lengths import EncodeResult, data_error, grouped
from posttrain.data.readers import DataSource, ReadResult, read_records
from posttrain.data.records import Conversation
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.inference.decode import context_limit
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.heads import load_any
from posttrain.models.load import LoadedModel
from posttrain.models.vocabulary import outside, rows_of
from posttrain.retention.penalty._kept import PENALTIES
from posttrain.retention.selection import NO_TASK, ReplayConfig, ReplayContext, Task, conversations_in
from posttrain.training.batches import Forms
from posttrain.training.checkpoints import file_fingerprint, settings_of
from posttrain.training.config import TrainConfig
from posttrain.training.forms import form_of
from posttrain.training.forms.base import EncodeSettings, Form
from posttrain.training.forms.on_policy import AskedRow
from posttrain.training.steps import Material
from posttrain.tuners._prompted import AtPrompts
from posttrain.tuners._virtual import VirtualTokens

__all__ = ["hold_out", "longest_row", "longest_within", "material_of", "read_source", "run_fingerprint", "talks_of"]

LISTED = 5
"""Maximum number of problems of skipped rows that are listed; the others are only counted."""
HASHED_PARAMETERS = 500_000_000
"""Maximum number of parameters for which the fingerprint of a run contains the hash of the start weights. For larger
models the weights are not hashed.
"""


def material_of(
    config: TrainConfig,
    loaded: LoadedModel,
    *,
    rows: list[Any] | None = None,
    validation_rows: list[Any] | None = None,
    replay_rows: list[Any] | None = None,
    base: Path | None = None,
    say: Callable[[str], None] = print,
    task: Task = NO_TASK,
    adapter: Path | None = None,
    check: Callable[[Material], None] | None = None,
    made: bool = False,
) -> Material:
    """Read, encode and generate the rows that were not given.

    base: relative paths of the replay are relative to this folder; task: which of several tasks this run learns;
    adapter: the folder of the adapter from which the run continues; check: is called with the rows that were read
    before any replay is generated, which may take an hour; made: whether rows are made while the model trains, so that
    none have to be known now. Raise ConfigError or DataError if there are no rows to learn from, and ConfigError for
    early stopping without validation rows.
    """

    def read(source: DataSource) -> list[Any]:
        return read_rows(source, loaded, config, max_length=longest_row(config, loaded.model), say=say)

    own_rows = rows is None
    if rows is None and config.data is None and not made:
        raise ConfigError(Problem("data", "no rows to learn from", "give data: rows.jsonl"))
    if rows is None:
        rows = read(config.data) if config.data is not None else []
    if validation_rows is None and config.validation is not None:
        validation_rows = read(config.validation)
    elif validation_rows is None and config.validation_share:
        rows, validation_rows = hold_out(rows, config.validation_share, config.seed)
        say(f"validation: {len(validation_rows)} rows held out, {len(rows)} rows to learn from")
    if config.early_stopping_patience is not None and not validation_rows:
        mend = "give validation or validation_share"
        raise ConfigError(Problem("early_stopping_patience", "needs validation rows", mend))
    task = task._replace(rows=len(rows))
    longest = longest_row(config, loaded.model)

    def fitted(rows: Sequence[Any]) -> list[Any]:
        if not isinstance(config.tuner, AtPrompts):
            return list(rows)
        made = one_answer_each(rows)
        if len(made) > len(rows):
            say(f"{len(rows)} rows become {len(made)} with one answer each, as {config.tuner.kind} needs them")
        return made

    if own_rows and rows and config.replay is not None:
        rows = rows + _lessons(config, task, loaded.tokenizer, longest, {row.location for row in rows})
    rows, validation_rows = fitted(rows), fitted(validation_rows or [])
    if check is not None and rows:
        check(Material(rows, validation_rows, []))
    if replay_rows is None and config.replay is not None:
        start = loaded if adapter is None else load_any(str(adapter))
        replay_rows = make_replay(config, start, longest, base or Path(), say, task)
    if not rows and not made:
        raise DataError(Problem("data", "no rows to learn from"))
    found = Material(rows, validation_rows, fitted(replay_rows or []))
    check_tokens([row for part in found for row in part], loaded)
    return found


def run_fingerprint(
    config: TrainConfig,
    loaded: LoadedModel,
    material: Material,
    forms: Forms,
    earlier: Path | None = None,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Return everything that decides the result: settings, start weights, template, rows; see `checkpoints.py`."""
    parameters = sum(p.numel() for p in loaded.model.parameters())
    found = {"config": settings_of(config)}
    if earlier is not None:
        left = sorted((earlier / PENALTIES).glob("*.safetensors"))
        found["earlier"] = {path.stem: file_fingerprint(path) for path in left}
    return {
        **found,
        **({"adapter": file_fingerprint(adapter / "adapter_model.safetensors")} if adapter is not None else {}),
        "weights": weights_fingerprint(loaded.model) if parameters <= HASHED_PARAMETERS else "not computed",
        "template": template_fingerprint(loaded.tokenizer),
        "rows": _rows_fingerprint(material.new, forms.new),
        "validation_rows": _rows_fingerprint(material.validation, forms.new),
        "replay_rows": _rows_fingerprint(material.old, forms.old),
    }


def _rows_fingerprint(rows: Sequence[Any], form: Form) -> str:
    """Return the first 16 hex digits of a sha256 over all that affects the losses of the rows; "none" without rows."""
    if not rows:
        return "none"
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array("q", form.numbers(row)).tobytes())
    return digest.hexdigest()[:16]


def longest_row(config: TrainConfig, model: PreTrainedModel) -> int:
    """Return the maximum number of tokens of a row: `max_length`, or less if the model has fewer positions. Virtual
    tokens use positions of the model, too.
    """
    return longest_within(config.max_length, config.tuner, context_limit(model))


def longest_within(max_length: int, tuner: Config, positions: int) -> int:
    """Return the maximum number of tokens of a row for a model with this number of positions."""
    return min(max_length, positions - (tuner.tokens if isinstance(tuner, VirtualTokens) else 0))


def read_source(source: DataSource, config: TrainConfig) -> ReadResult:
    """Read records. If the source does not name its format, use the format of the objective's form."""
    if source.format == "auto":
        source = source.model_copy(update={"format": form_of(config.objective).reads})
    return read_records(source, on_bad_row=config.on_bad_row)


def read_rows(
    source: DataSource, loaded: LoadedModel, config: TrainConfig, *, max_length: int, say: Callable[[str], None]
) -> list[Any]:
    """Read the rows of a file or data set and encode them as the objective's form does. `say` reports how many rows
    were dropped and cut. Raise DataError with every bad row.
    """
    tokenizer = loaded.tokenizer
    form = form_of(config.objective)
    read = read_source(source, config)
    settings = EncodeSettings(config.objective, max_length, config.over_long, config.on_bad_row)
    encoded: EncodeResult[Any] = form.encode(read.records, tokenizer, settings)
    unknown = {at: problem for at, row in enumerate(encoded.rows) if (problem := _unknown_token(row, loaded))}
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


def _unknown_token(row: Any, loaded: LoadedModel) -> Problem | None:
    """Return the problem of a row that contains a token for which the model has no embedding; None if there is none."""
    if isinstance(row, AskedRow):
        sequences = [row.prompt, row.shown, row.demonstration]
    else:
        sequences = [one.input_ids for one in sequences_of(row)]
    known = rows_of(loaded.model)
    found = (outside(row.location, ids, known, loaded.tokenizer) for ids in sequences)
    return next((problem for problem in found if problem is not None), None)


def check_tokens(rows: Sequence[Any], loaded: LoadedModel) -> None:
    """Raise DataError if rows, from any source, contain tokens for which the model has no embedding."""
    unknown = [problem for row in rows if (problem := _unknown_token(row, loaded)) is not None]
    if unknown:
        raise data_error(unknown, len(rows), skippable=False)


def talks_of(config: TrainConfig) -> list[Conversation]:
    """Return the rows of `data` that are conversations."""
    if config.data is None:
        return []
    return conversations_in(read_records(config.data, on_bad_row=config.on_bad_row).records)[0]


def _lessons(
    config: TrainConfig, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, locations: Collection[str]
) -> list[Any]:
    """Return the rows that the replay adds to the new rows. locations: those of the new rows."""
    if not isinstance(config.replay, ReplayConfig) or not config.replay.of_tasks:
        return []
    made = config.replay.lessons([talk for talk in talks_of(config) if talk.location in locations], task)
    settings = EncodeSettings(config.objective, max_length, config.over_long)
    return form_of(config.objective).encode(made, tokenizer, settings).rows if made else []


def make_replay(
    config: TrainConfig, loaded: LoadedModel, max_length: int, base: Path, say: Callable[[str], None], task: Task
) -> list[Encoded]:
    """Make old rows as `config.replay` says, with the model as it is before training. Return no rows if there is no
    earlier task to replay.
    """
    assert isinstance(config.replay, ReplayConfig)
    respondent = ModelRespondent(loaded)
    context = ReplayContext(respondent, respondent.fingerprint, seed=config.seed, base=base, say=say, task=task)
    conversations = registry.load("replay", config.replay.kind).function(config.replay, context)
    if not conversations:  # the replay has reported why
        return []
    # the lengths of the model's own answers are not controlled: a row that is too long is counted, not an error
    encoded = encode_all(conversations, loaded.tokenizer, max_length=max_length, over_long="drop", on_bad_row="skip")
    say(
        f"replay: {len(encoded.rows)} rows, {encoded.dropped} longer than {max_length} tokens left out, "
        f"{len(encoded.problems)} bad ones skipped"
    )
    return encoded.rows


def hold_out(rows: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Return (training rows, validation rows): a random share is held out, with at least one row on each side. Rows of
    one location, such as the windows of a long text, stay together. Raise DataError with fewer than two locations.
    """
    locations = list(dict.fromkeys(row.location for row in rows))
    if len(locations) < 2:
        raise DataError(Problem(rows[0].location, "one row cannot be split", "give more rows, or a validation file"))
    order = list(range(len(locations)))
    random.Random(f"validation {seed}").shuffle(order)
    count = min(max(round(share * len(locations)), 1), len(locations) - 1)
    held = {locations[i] for i in order[:count]}
    return [row for row in rows if row.location not in held], [row for row in rows if row.location in held]
