"""`posttrain list`: list what each registry holds, without importing the modules, and print the schemas of files."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any, Literal

import typer

from posttrain import registry
from posttrain.cli.options import JsonOption, console, emit, table, talk
from posttrain.errors import ConfigError, Problem
from posttrain.language import translate

SCHEMAS = {
    "study": "posttrain.studies.config:Study",
    "change": "posttrain.config.change:Change",
    "train": "posttrain.training.config:TrainConfig",
    "exams": "posttrain.studies.exam:ExamsFile",
}
"""Kind of file that has a schema -> its class."""


def list_kinds(
    seam: Annotated[str | None, typer.Argument(metavar="METHODS|OBJECTIVES|...", help="Only this registry.")] = None,
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="The settings of this kind alone.")] = None,
    schema: Annotated[
        Literal["study", "change", "train", "exams"] | None,
        typer.Option("--schema", help="Print the JSON Schema of a file, for editors that check YAML."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List what each registry holds: the words that may follow `kind:` in a YAML file; or the settings of one kind."""
    if schema is not None:
        emit(schema_of(schema))
        return
    if seam and kind:
        _print_settings(seam_of(seam), kind, json=json)
        return
    names = [seam_of(seam)] if seam else list(registry.SEAMS)
    rows = [row for name in names for row in registry.listed(name)]
    if json:
        emit([{"seam": r.seam, "kind": r.kind, "module": r.module, "summary": r.summary} for r in rows])
        return
    from rich.text import Text

    shown = table("registry", "kind", "what it is")
    for row in rows:
        shown.add_row(row.seam, row.kind, Text(translate(row.summary)))
    console(stderr=False).print(shown)


def _print_settings(seam: str, kind: str, *, json: bool) -> None:
    from rich.text import Text

    from posttrain.cli.list_settings import settings_of

    entry = registry.load(seam, kind, f"list {plural(seam)}")
    settings = settings_of(entry.config)
    if json:
        emit([setting._asdict() for setting in settings])
        return
    shown = table("setting", "default", "takes", "what it is")
    shown.columns[0].no_wrap = True
    for key, takes, default, told in settings:
        shown.add_row(*map(Text, (key, translate("required") if default is None else default, takes, told)))
    console(stderr=False).print(shown)
    if entry.paper:
        talk(f"paper: {entry.paper}")


def seam_of(word: str) -> str:
    """Return the registry that a word names, in singular or plural. Raise ConfigError if there is none."""
    for seam in registry.SEAMS:
        if word.lower() in (seam, plural(seam)):
            return seam
    known = ", ".join(plural(seam) for seam in registry.SEAMS)
    raise ConfigError(Problem("list", f"no registry '{word}'", f"known: {known}"))


def plural(seam: str) -> str:
    """Return the plural of a registry's name.

    >>> [plural(seam) for seam in ("tuner", "penalty", "replay")]
    ['tuners', 'penalties', 'replay']
    """
    if seam == "replay":
        return seam
    return f"{seam[:-1]}ies" if seam.endswith("y") else f"{seam}s"


def schema_of(file: str) -> dict[str, Any]:
    """Return the JSON Schema of a study, change, training or exams file, with the help text of each key."""
    module, _, name = SCHEMAS[file].partition(":")
    schema: dict[str, Any] = vars(import_module(module))[name].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
