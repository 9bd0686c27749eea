"""What a study's training cells are to learn, rendered before anything is loaded; for `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.config.change import Change
from posttrain.data.readers import DataSource
from posttrain.data.records import Record
from posttrain.errors import DataError, Problem
from posttrain.studies.config import StageConfig
from posttrain.studies.plan import Cell
from posttrain.studies.replays import Readers
from posttrain.studies.train_config import TrainMethodConfig
from posttrain.studies.train_rows import encoded_rows, rows_of, target_rows
from posttrain.training.forms import form_of
from posttrain.training.precision import unused_dtype
from posttrain.training.rows import longest_within
from posttrain.training.run import kind_of

__all__ = ["check_rows", "unused_dtypes"]


class _Unknown(Exception):
    """The model's own answers would be needed."""


def check_rows(readers: Readers, cells: Sequence[Cell]) -> None:
    """DataError with every row that a cell could not learn, such as one longer than its method's `max_length`, each
    once. Rows that hold what the model answers now are not known yet.
    """
    seen: set[str] = set()
    problems: list[Problem] = []
    for cell in cells:
        for method in cell.method.parts:
            if not isinstance(method, TrainMethodConfig):
                continue
            reader = readers[cell.model]
            kept = method.model_dump_json(include={"objective", "tuner", "data", "max_length"})
            key = f"{cell.model} {cell.change_name} {kept}"
            if key in seen:
                continue
            seen.add(key)
            try:
                records = _records(method, cell.changes, cell.stages, readers.base)
                longest = longest_within(method.max_length, method.tuner, reader.limit)
                if records:
                    encoded_rows(method.objective, records, reader.tokenizer, longest)
            except DataError as error:
                own = f"method '{cell.method.label}'"
                named = [p if p.location else Problem(own, p.cause, p.mend) for p in error.problems]
                problems += [problem for problem in named if problem not in problems]
    if problems:
        raise DataError(*problems)


def _records(
    method: TrainMethodConfig, changes: Sequence[Change], stages: Sequence[StageConfig], base: Path
) -> list[Record]:
    if stages:
        return [record for stage in stages for record in rows_of(stage.source(base))]

    def present() -> list[str]:
        raise _Unknown

    targets = target_rows(changes)
    try:
        made = form_of(method.objective).from_targets(targets, present).records if targets else []
    except _Unknown:
        made = []
    sources: list[DataSource | None] = []
    for name in [change.name for change in changes] or [""]:
        source = method.source(name, base)
        if source not in sources:
            sources.append(source)
    return [*made, *(record for source in sources for record in rows_of(source))]


def unused_dtypes(cells: Sequence[Cell]) -> list[str]:
    """The methods that ask for a precision in which what they leave is not saved."""
    said: dict[str, None] = {}
    for cell in cells:
        for method in cell.method.parts:
            if not isinstance(method, TrainMethodConfig):
                continue
            if unused := unused_dtype(method.save_dtype, kind_of(method.tuner)):
                said[f"method '{cell.method.label}': {unused}"] = None
    return list(said)
