"""`posttrain gate RUN_FOLDER`: decide SHIP or HOLD, for the CI of people who ship models."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.options import JsonOption, emit, print_lines
from posttrain.errors import ConfigError, Problem

HOLD = 5
"""The exit code if the decision for a model is HOLD."""


def gate(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER", help="The folder that `posttrain run` or `posttrain exam` wrote.")
    ],
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="SCORE=N", help="A score, or each of a group, must be so high; repeatable."),
    ] = None,
    max_loss: Annotated[
        list[str] | None,
        typer.Option("--max-loss", metavar="SCORE=N", help="A score, or each of a group, may fall by so much."),
    ] = None,
    noise_floor: Annotated[
        Literal["auto", "none"],
        typer.Option(help="auto: a loss that no paired test finds is none; none: every fall counts."),
    ] = "auto",
    method: Annotated[str, typer.Option(metavar="NAME", help="Which method, where several were examined.")] = "",
    checkpoint: Annotated[str, typer.Option(metavar="NAME", help="Which point of it.")] = "final",
    json: JsonOption = False,
) -> None:
    """Say SHIP or HOLD, with the reasons. Exit code 0 or 5.

    Example: posttrain gate runs/exam --min reliability=0.9 --max-loss locality=0.05 --max-loss mmlu=0.01
    """
    from posttrain.exams.gate import gate as judge
    from posttrain.exams.results import read_results

    verdicts = judge(
        read_results(run_folder),
        method=method,
        checkpoint=checkpoint,
        minimum=_limits(minimum or (), "--min"),
        max_loss=_limits(max_loss or (), "--max-loss"),
        noise_floor=noise_floor == "auto",
    )
    ship = all(one.ship for one in verdicts)
    if json:
        told = []
        for one in verdicts:
            reasons = [reason._asdict() for reason in one.reasons]
            told.append({"model": one.model, "method": one.method, "verdict": one.word, "reasons": reasons})
        emit({"ship": ship, "verdicts": told})
    else:
        print("SHIP" if ship else "HOLD")
        for one in verdicts:
            print_lines(*(f"{f'{one.model}: ' if len(verdicts) > 1 else ''}{reason}" for reason in one.reasons))
    if not ship:
        raise typer.Exit(HOLD)


def _limits(given: Sequence[str], option: str) -> dict[str, float]:
    """Return the numbers of the SCORE=N texts, by score. Raise ConfigError with every text that has no number, and with
    every loss below 0, which would be a gain."""
    found: dict[str, float] = {}
    problems = []
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = limit = float(value)
        except ValueError:
            limit = nan
        if not isfinite(limit):
            problems.append(Problem(f"{option} {text}", "SCORE=N is expected", f"{option} reliability=0.9"))
        elif option == "--max-loss" and limit < 0:
            mend = "what a score must reach is demanded with --min"
            problems.append(Problem(f"{option} {text}", "a loss of 0 or more is expected", mend))
    if problems:
        raise ConfigError(*problems)
    return found
