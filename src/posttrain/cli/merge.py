"""`posttrain merge`: arithmetic on models, from file to file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain import registry
from posttrain.cli.options import (
    DownloadOption,
    DryRunOption,
    JsonOption,
    OutputOption,
    SetOption,
    emit,
    print_lines,
    talk,
)
from posttrain.cli.stopping import when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, Problem
from posttrain.errors import shell_word as quoted

if TYPE_CHECKING:
    from posttrain.merging.plan import Plan
    from posttrain.merging.recipe import Recipe

MIB = 1 << 20


def merge(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[EXPRESSION|RECIPE] [NAME=MODEL...]",
            help='A sum of models such as "base + 0.8*(math - base)", or a recipe (.yaml); then what each name is.',
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m", metavar="KIND", help="A method instead of an expression: posttrain list mergers."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="NAME", help="The model that all others were made of [default: base]."),
    ] = None,
    output: OutputOption = None,
    sets: SetOption = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="All cores when left out.")
    ] = None,
    download: DownloadOption = False,
    dry_run: DryRunOption = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print whether the models fit and what is decided; exit with 1 if not.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Add, subtract and average models without training: skills added, taken away, or carried over to another model.

    Everything is decided and checked before anything is written: --check and --dry-run say it. --set reaches the
    recipe's settings (dtype, missing, tokenizer, template, shard_gb, seed) and, as method.KEY, those of the method.
    """
    from posttrain.merging.plan import Misfit
    from posttrain.merging.recipe import planned
    from posttrain.merging.write import told_of_template, write_merge

    recipe, location = _recipe(words, method, base, sets or [])
    if output is None and not dry_run and not check:
        raise ConfigError(Problem("--output", "no folder for the merged model", "say it: --output models/merged"))
    again = "stopped: run the same command to go on"
    when_stopped(lambda: (Problem("", again),))
    with shown_works():
        try:
            plan = planned(recipe, location=location, offline=not download)
        except Misfit as error:
            if check:
                _decided(error.decided, [str(problem) for problem in error.problems], json=json)
                raise typer.Exit(1) from error
            raise
        of_template = told_of_template(plan, recipe.template)
        if check:
            _decided([*plan.notes, *of_template], [], json=json)
            return
        plan = plan._replace(notes=(*plan.notes, *of_template[1:]))
        if dry_run:
            _show(plan, threads, json=json)
            return
        assert output is not None
        for note in plan.notes:
            talk(note)
        write_merge(plan, output, recipe=recipe.noted(), template=recipe.template, threads=threads, say=talk)
    if json:
        emit({"output": str(output), **_told(plan)})
        return
    talk(f"merged: {plan.what}")
    print(output)
    talk(f"try it: posttrain chat {quoted(str(output))}")
    talk(f"whether it still works: posttrain exam {quoted(str(output))} --change FILE")


def _recipe(words: list[str], method: str | None, base: str | None, sets: list[str]) -> tuple[Recipe, str]:
    """Return the recipe of the command line, and where its expression stands, for errors."""
    from posttrain.config.load import apply_sets, check, line_of, load_yaml, read_yaml
    from posttrain.merging.mergekit import is_mergekit, recipe_of
    from posttrain.merging.recipe import Recipe

    first, *rest = words
    if first.endswith((".yaml", ".yml")):
        if method is not None or base is not None:
            option = "--method" if method else "--base"
            raise ConfigError(Problem(option, "the recipe says it", "leave it out, or use --set"))
        models = [f"models.{name}={model}" for name, model in _pairs(rest).items()]
        node = read_yaml(Path(first), Recipe.SCHEMA)
        if is_mergekit(node):
            tree = recipe_of(node, first)
            return check(tree, Recipe, first, apply_sets(tree, [*models, *sets])), first
        recipe = load_yaml(Path(first), Recipe, [*models, *sets])
        line = line_of(node, ["expression"]) if node.get("expression") == recipe.expression else None
        return recipe, "expression" if line is None else f"{first}:{line}: expression"
    made: dict[str, Any] = {"models": _pairs(rest if method is None else words)}
    if method is None:
        if "=" in first and not any(sign in first.partition("=")[0] for sign in "+-*/() "):
            mend = 'write what shall be computed: "base + 0.8*(math - base)"; or name a --method'
            raise ConfigError(Problem("EXPRESSION", "it is missing", mend))
        made["expression"] = first
    else:
        registry.load("merger", method, "--method")
        made["method"] = {"kind": method}
    if base is not None:
        made["base"] = base
    given = apply_sets(made, sets)
    return check(made, Recipe, "merge", given), "expression"


def _pairs(words: list[str]) -> dict[str, str]:
    """Return the models of NAME=MODEL. Raise ConfigError for other words and for a name that is given twice."""
    models: dict[str, str] = {}
    for word in words:
        name, sign, model = word.partition("=")
        if not sign or not name or not model:
            raise ConfigError(Problem(word, "is no NAME=MODEL", "say what a name is: math=runs/math/model"))
        if name in models:
            raise ConfigError(Problem(word, f"'{name}' is given twice", "give each model a name of its own"))
        models[name] = model
    return models


def _decided(decided: Sequence[str], problems: Sequence[str], *, json: bool) -> None:
    """Print what was decided of the models, and what does not fit."""
    if json:
        emit({"fits": not problems, "decided": list(decided), "problems": list(problems)})
        return
    verdict = f"no, {len(problems)} {'problem' if len(problems) == 1 else 'problems'}" if problems else "yes"
    print_lines(
        f"fits     {verdict}", *(f"problem  {one}" for one in problems), *(f"note     {one}" for one in decided)
    )


def _told(plan: Plan) -> dict[str, Any]:
    return {
        "what": plan.what,
        "tensors": len(plan.merge.jobs),
        "reads_bytes": plan.reads,
        "writes_bytes": plan.writes,
        "files": [file.name for file in plan.merge.layout.files],
        "notes": list(plan.notes),
    }


def _show(plan: Plan, threads: int | None, *, json: bool) -> None:
    """Print what would be done, with a trial of how long it takes."""
    from posttrain.merging.trial import trial

    seen = trial(plan, threads)
    if json:
        emit({**_told(plan), "about_s": seen.wall_s, "memory_mib": seen.memory_bytes >> 20})
        return
    files = plan.merge.layout.files
    print_lines(
        f"merge    {plan.what}",
        f"tensors  {len(plan.merge.jobs):,}",
        f"reads    {plan.reads >> 20:,} MiB",
        f"writes   {plan.writes >> 20:,} MiB in {len(files)} {'file' if len(files) == 1 else 'files'}",
        f"memory   about {seen.memory_bytes >> 20:,} MiB beside Python's own",
        f"time     about {seen.wall_s:,.0f} s",
        *(f"note     {note}" for note in plan.notes),
    )
