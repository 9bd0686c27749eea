"""Measure or rebuild the built-in models: `python -m tools.pocket check | build`. Run it in a clone's folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.cli.options import JsonOption, SetOption, console, emit, talk
from posttrain.config.load import apply_sets, check
from posttrain.errors import PosttrainError
from posttrain.models.memory import few_kernels
from posttrain.models.processor import wait_politely
from tools.pocket.recipe import Recipe

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.command("check")
def measure(
    json: JsonOption = False,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check DIR/base and DIR/chat instead of the shipped ones.")
    ] = None,
    questions: Annotated[int, typer.Option(metavar="N", min=1, help="Questions per relation, language and kind.")] = 40,
    everything: Annotated[bool, typer.Option("--all", help="Print the score of every relation, too.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Write the scores into the README.md of both folders.")] = False,
) -> None:
    """Ask the models in the box what they should know; exit 1 when a floor is missed."""
    from posttrain.models.load import load_model, resolve
    from tools.pocket.card import write_cards
    from tools.pocket.check import as_rows, check_base, check_chat, failures

    names = {kind: str(folder / kind) if folder else f"pocket:{kind}" for kind in ("base", "chat")}
    talk("asking pocket:base and pocket:chat, about a minute on two cores")
    scores = check_base(load_model(names["base"]), n=questions) | check_chat(load_model(names["chat"]), n=questions)
    missed = failures(scores)
    if card:
        write_cards({kind: Path(resolve(name)) for kind, name in names.items()}, scores)
    if json:
        emit({"scores": scores, "missed": missed})
    else:
        from rich.table import Table

        table = Table("score", "value", "gate", box=None)
        for row in as_rows(scores):
            if everything or row["score"].count(".") < 3:
                table.add_row(row["score"], f"{row['value']:.1%}", " ".join(row["gate"]))
        console(stderr=False).print(table)
        for line in missed:
            talk(f"missed: {line}")
    if missed:
        raise typer.Exit(1)


@app.command()
def build(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for base/, chat/ and the run's logs.")],
    json: JsonOption = False,
    sets: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe and stop.")] = False,
) -> None:
    """Train pocket:base and pocket:chat again from the seed, and say how far they are from the shipped ones.

    Under an hour on two CPU cores; goes on where it stopped when run again.
    """
    given: dict[str, Any] = {}
    apply_sets(given, sets or [])
    recipe = check(given, Recipe, "--set")
    if dry_run:
        emit(recipe.model_dump())
        return
    from posttrain.training.progress import progress_for
    from tools.pocket import build as building
    from tools.pocket.compare import distance

    cost = building.build(output, recipe, progress=progress_for, say=talk)
    talk("measuring the distance from the shipped models")
    cost["distance"] = distance(output)
    if json:
        emit(cost)
        return
    talk(f"built in {cost['wall_s'] / 60:.1f} minutes: {output}/base, {output}/chat")
    for kind, far in cost["distance"].items():
        print(f"pocket:{kind}: {far['summary']}")
    talk(f"measure them with: python -m tools.pocket check --folder {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    wait_politely()
    few_kernels()
    try:
        app(args=arguments, prog_name="python -m tools.pocket")
    except SystemExit as stop:
        return int(stop.code or 0)
    except PosttrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
