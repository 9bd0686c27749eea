"""`posttrain report RUN_FOLDER`: write the report of a finished or unfinished run again, in either language."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posttrain.cli.options import JsonOption, LanguageOption, emit, talk
from posttrain.cli.stopping import when_stopped
from posttrain.errors import Problem
from posttrain.language import spoken

if TYPE_CHECKING:
    from posttrain.reports.folder import Run

ALL = "all"


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The folder that `posttrain run` wrote.")],
    language: LanguageOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="RUN_FOLDER/report.html when left out.")
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option(
            "--tables",
            metavar="EXAM|all",
            help="Only the plain table of an exam: print it, write it as HTML, CSV and LaTeX. May be repeated.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write one self-contained HTML report of a run folder: scores, plots, answers before and after, configs, cost.

    Nothing is run again and no model is loaded. Example: posttrain report runs/superlative --language zh-TW
    """
    from posttrain.reports.folder import read_run
    from posttrain.reports.html import write_page

    when_stopped(lambda: (Problem("", "stopped", "run the same command again"),))
    language = spoken()
    run = read_run(run_folder)
    for problem in run.problems:
        talk(f"left out: {problem}")
    if tables:
        _tables(run, run_folder, tables, language=language, json=json)
        return
    path = write_page(run, output or run_folder / "report.html", language=language)
    cells = len(run.trained_once)
    failed = sum(not cell.done for cell in run.trained_once)
    size = path.stat().st_size
    if json:
        answers = sum(len(cell.samples) for cell in run.cells)
        counts = {"cells": cells, "failed": failed, "answers": answers, "problems": list(run.problems)}
        emit({"report": str(path), "bytes": size, "language": language, **counts})
    else:
        if run.exams:
            talk(f"plain tables of {len(run.exams)} exam{'' if len(run.exams) == 1 else 's'}: {run_folder / 'tables'}")
        talk(f"{cells} cell{'' if cells == 1 else 's'} ({failed} failed), {size / 1e6:.1f} MB")
        print(path)


def _tables(run: Run, folder: Path, wanted: list[str], *, language: str, json: bool) -> None:
    """Write the wanted exams' tables to files; print the paths to stderr and the tables to stdout. Raise ConfigError
    if an exam is unknown."""
    from posttrain.errors import ConfigError
    from posttrain.reports.tables_out import plain_table, records, table_names, to_text, write_tables
    from posttrain.reports.texts import text

    known = table_names(run)
    unknown = [name for name in wanted if name not in (*known, ALL)]
    if unknown:
        raise ConfigError(
            *(Problem("--tables", f"no exam '{name}'", f"known: {', '.join([*known, ALL])}") for name in unknown)
        )
    names = known if ALL in wanted else list(dict.fromkeys(wanted))
    files = write_tables(run, folder, names=names, language=language) if names else []
    found = {name: plain_table(run, name) for name in names}
    if json:
        rows = {name: records(table, language) for name, table in found.items()}
        emit({"tables": rows, "files": [str(path) for path in files]})
        return
    for path in files:
        talk(f"written: {path}")
    shown = (f"{text(table.label, language)}\n\n{to_text(table, language)}" for table in found.values())
    print("\n".join(shown), end="")
