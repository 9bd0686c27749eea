"""The rows of a run: those to learn are read, old ones are read or generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.data.readers import DataSource
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.models.heads import load_any
from posttrain.models.load import LoadedModel
from posttrain.retention.selection import NO_TASK, Task
from posttrain.training.config import TrainConfig
from posttrain.training.prepare import check_tokens, hold_out, lessons, longest_row, make_replay, read_rows

__all__ = ["Material", "material_of"]


class Material(NamedTuple):
    """The rows of a run: to learn, to measure the loss on, and old ones to mix in."""

    new: list[Any]
    validation: list[Any]
    old: list[Any]


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
) -> Material:
    """Read, render and generate what was not given. base: relative paths of the replay are relative to it; task: where
    this run stands in a row of tasks; adapter: what it takes up; check: is told what was read before any replay is
    generated, which may take an hour.
    """

    def read(source: DataSource) -> list[Any]:
        return read_rows(source, loaded, config, max_length=longest_row(config, loaded.model), say=say)

    own_rows = rows is None
    if rows is None:
        if config.data is None:
            raise ConfigError(Problem("data", "no rows to learn from", "give data: rows.jsonl"))
        rows = read(config.data)
    if validation_rows is None and config.validation is not None:
        validation_rows = read(config.validation)
    elif validation_rows is None and config.validation_share:
        rows, validation_rows = hold_out(rows, config.validation_share, config.seed)
        say(f"validation: {len(validation_rows)} rows held out, {len(rows)} rows to learn from")
    if config.early_stopping_patience is not None and not validation_rows:
        mend = "give validation or validation_share"
        raise ConfigError(Problem("early_stopping_patience", "needs validation rows", mend))
    task = task._replace(rows=len(rows))
    if own_rows and rows and config.replay is not None:
        places = {row.location for row in rows}
        rows = rows + lessons(config, task, loaded.tokenizer, longest_row(config, loaded.model), places)
    if check is not None and rows:
        check(Material(rows, validation_rows or [], []))
    if replay_rows is None and config.replay is not None:
        start = loaded if adapter is None else load_any(str(adapter))
        replay_rows = make_replay(config, start, longest_row(config, loaded.model), base or Path(), say, task)
    if not rows:
        raise DataError(Problem("data", "no rows to learn from"))
    check_tokens([*rows, *(validation_rows or ()), *(replay_rows or ())], loaded)
    return Material(rows, validation_rows or [], replay_rows or [])
