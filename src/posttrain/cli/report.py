"""`posttrain report RUN_FOLDER`: write the report of a run again, in either language, also of an unfinished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.options import JsonOption, emit, talk


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The folder that `posttrain run` wrote.")],
    language: Annotated[
        str, typer.Option("--language", "-l", metavar="en|zh-TW", help="The language shown first; the page can switch.")
    ] = "en",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="RUN_FOLDER/report.html when left out.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write one self-contained HTML report of a run folder: scores, plots, answers before and after, configs, cost.

    Nothing is run again and no model is loaded. Example: posttrain report runs/superlative --language zh-TW
    """
    from posttrain.reports.folder import read_run
    from posttrain.reports.html import write_page
    from posttrain.reports.texts import check_language

    check_language(language)
    run = read_run(run_folder)
    path = write_page(run, output or run_folder / "report.html", language=language)
    for problem in run.problems:
        talk(f"left out: {problem}")
    failed = sum(not cell.done for cell in run.cells)
    size = path.stat().st_size
    if json:
        emit(
            {
                "report": str(path),
                "bytes": size,
                "language": language,
                "cells": len(run.cells),
                "failed": failed,
                "answers": sum(len(cell.samples) for cell in run.cells),
                "problems": list(run.problems),
            }
        )
    else:
        talk(f"{len(run.cells)} cells ({failed} failed), {size / 1e6:.1f} MB")
        print(path)
