"""`posttrain list`: what each registry has, without importing the modules, and the schema of each kind of file."""

from __future__ import annotations

import json as _json
from enum import StrEnum
from typing import Annotated, Any

import typer

from posttrain import registry
from posttrain.cli.options import JsonOption, console, emit
from posttrain.errors import ConfigError, Problem
from posttrain.language import translate

__all__ = ["list_kinds", "schema_of"]


class SchemaOf(StrEnum):
    """Kinds of files that have a schema."""

    study = "study"
    change = "change"
    train = "train"
    exams = "exams"


def list_kinds(
    seam: Annotated[str | None, typer.Argument(metavar="METHODS|OBJECTIVES|...", help="Only this registry.")] = None,
    schema: Annotated[
        SchemaOf | None, typer.Option("--schema", help="Print the JSON Schema of a file, for editors that check YAML.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List what each registry holds: the words that may follow `kind:` in a YAML file."""
    if schema is not None:
        emit(schema_of(schema.value))
        return
    names = [seam_of(seam)] if seam else list(registry.SEAMS)
    rows = [row for name in names for row in registry.listed(name)]
    if json:
        emit([{"seam": r.seam, "kind": r.kind, "module": r.module, "summary": r.summary} for r in rows])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("registry", "kind", "what it is"):
        table.add_column(translate(column), overflow="fold")
    for row in rows:
        table.add_row(row.seam, row.kind, Text(row.summary))
    console(stderr=False).print(table)


def seam_of(word: str) -> str:
    """The registry that a word names, singular or plural. ConfigError when there is none."""
    for seam in registry.SEAMS:
        if word.lower() in (seam, plural(seam)):
            return seam
    known = ", ".join(plural(seam) for seam in registry.SEAMS)
    raise ConfigError(Problem("list", f"no registry '{word}'", f"known: {known}"))


def plural(seam: str) -> str:
    """The plural of a registry's name.

    >>> [plural(seam) for seam in ("tuner", "penalty", "replay")]
    ['tuners', 'penalties', 'replay']
    """
    if seam == "replay":
        return seam
    return f"{seam[:-1]}ies" if seam.endswith("y") else f"{seam}s"


def schema_of(file: str) -> dict[str, Any]:
    """The JSON Schema of a study, a change, a training or an exams file, each key with its help text."""
    if file == "study":
        from posttrain.studies.config import Study as Model
    elif file == "change":
        from posttrain.config.change import Change as Model  # type: ignore[assignment]  # one of four Config classes
    elif file == "exams":
        from posttrain.studies.exam import ExamsFile as Model  # type: ignore[assignment]  # one of four
    else:
        from posttrain.training.config import TrainConfig as Model  # type: ignore[assignment]  # one of four
    schema: dict[str, Any] = Model.model_json_schema()
    _json.dumps(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
