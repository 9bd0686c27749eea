"""Check the rows that a study's trainings learn and replay, before a model is loaded; for `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from posttrain.data.records import Record
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.inference.encoding import PromptReader
from posttrain.inference.opening import read_prompts
from posttrain.retention.selection import ReplayConfig
from posttrain.studies.config import Study, find_model
from posttrain.studies.plan import Cell
from posttrain.studies.train_config import TrainMethodConfig
from posttrain.studies.train_rows import encoded_rows, rows_of, target_rows
from posttrain.training.forms import form_of
from posttrain.training.precision import unused_dtype
from posttrain.training.rows import longest_within
from posttrain.training.run import kind_of

__all__ = ["check_replays", "check_rows", "readers_of", "surprises", "trainings"]

Readers = Callable[[str], PromptReader]
"""From the name of a model of the study to its prompt reader, which needs the model's files but not its weights."""


class _Unknown(Exception):
    """Raised if rows need the model's own answers."""


def readers_of(study: Study, base: Path) -> Readers:
    """Return the function from a model's name to its prompt reader; each reader is loaded once."""
    how = {"offline": not study.download, "trust_remote_code": study.trust_remote_code}
    return cache(lambda model: read_prompts(find_model(model, base)[0], **how))


def trainings(
    cells: Sequence[Cell], key: Callable[[Cell, TrainMethodConfig], str] | None = None
) -> list[tuple[Cell, TrainMethodConfig]]:
    """Return the trainings of cells, each with its cell. If `key` is given, keep the first training of each key."""
    each = [(cell, part) for cell in cells for part in cell.method.parts if isinstance(part, TrainMethodConfig)]
    if key is None:
        return each
    first: dict[str, tuple[Cell, TrainMethodConfig]] = {}
    for cell, method in each:
        first.setdefault(key(cell, method), (cell, method))
    return list(first.values())


def check_rows(readers: Readers, base: Path, cells: Sequence[Cell]) -> None:
    """Raise DataError with every row that a cell could not learn, such as a row longer than `max_length`, each once.
    Rows that need the model's present answers are not checked, because these are not known yet.
    """

    def key(cell: Cell, method: TrainMethodConfig) -> str:
        kept = method.model_dump_json(include={"objective", "tuner", "data", "max_length"})
        return f"{cell.model} {cell.change_name} {method.learns_targets} {kept}"

    problems: dict[Problem, None] = {}
    for cell, method in trainings(cells, key):
        reader = readers(cell.model)
        try:
            records = _records(method, cell, base)
            longest = longest_within(method.max_length, method.tuner, reader.limit)
            if records:
                encoded_rows(method.objective, records, reader.tokenizer, longest)
        except DataError as error:
            own = f"method '{cell.method.label}'"
            problems |= dict.fromkeys(p if p.location else Problem(own, p.cause, p.mend) for p in error.problems)
    if problems:
        raise DataError(*problems)


def _records(method: TrainMethodConfig, cell: Cell, base: Path) -> list[Record]:
    if cell.stages:
        return [record for stage in cell.stages for record in rows_of(stage.data.at(base))]

    def present() -> list[str]:
        raise _Unknown

    targets = target_rows(cell.changes if method.learns_targets else ())
    try:
        made = form_of(method.objective).from_targets(targets, present).records if targets else []
    except _Unknown:
        made = []
    sources = method.sources(cell.names, base)
    return [*made, *(record for source in sources for record in rows_of(source))]


def check_replays(readers: Readers, base: Path, cells: Sequence[Cell]) -> list[str]:
    """Check the replays and return lines for the user about them. Raise DataError with every prompt and row that a
    replay could not use, each once.
    """

    def key(cell: Cell, method: TrainMethodConfig) -> str:
        return f"{cell.model} {cell.seed} {method.replayed(cell.names[0])}"

    problems: dict[Problem, None] = {}
    said: dict[str, None] = {}
    for cell, method in trainings(cells, key):
        if not isinstance(method.replay, ReplayConfig):
            continue
        reader = readers(cell.model)
        try:
            if short := method.replay.for_change(cell.names[0]).check(base, reader, cell.seed):
                said[f"method '{cell.method.label}': {short}"] = None
        except PosttrainError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise DataError(*problems)
    return list(said)


def surprises(cells: Sequence[Cell]) -> list[str]:
    """Return a line for each method with a `save_dtype` that has no effect on what it saves, and for each one that a
    sequence of changes repeats, though it does not teach them."""
    said: dict[str, None] = {}
    for cell in cells:
        times, method = len(cell.changes), cell.method
        alike = times > 1 and len({tuple(method.files(name)) for name in cell.names}) == 1 and not method.needs_change
        if cell.sequence is not None and alike and not method.takes_sequence:
            cause = f"applied {times} times, once per change of the sequence"
            said[str(Problem(f"method '{method.label}'", cause))] = None
    for cell, method in trainings(cells):
        if unused := unused_dtype(method.save_dtype, kind_of(method.tuner)):
            said[f"method '{cell.method.label}': {unused}"] = None
    return list(said)
