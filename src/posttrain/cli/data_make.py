"""`posttrain data make changes|prompts`: change files and replay prompts from the facts of the models in the box."""

from __future__ import annotations

import json as _json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.cli.options import JsonOption, PlainCommand, PlainGroup, emit, talk
from posttrain.cli.stopping import NOT_WRITTEN, when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, Problem
from posttrain.models.disk import starting_anew, write_whole
from posttrain.models.meter import MOMENT_S, Meter

__all__ = ["app"]

app = typer.Typer(
    cls=PlainGroup, no_args_is_help=True, help="Make change files, or prompts for replay, from pocket's facts."
)
Count = Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many.")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Seed; other seeds draw other facts.")]


@app.command(cls=PlainCommand)
def changes(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the files.")] = Path(
        "changes"
    ),
    n: Count = 20,
    seed: Seed = 0,
    pattern_rows: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Also write DIR/pattern/NAME.jsonl: so many true rows of the same pattern."
        ),
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Write change files: one new fact each, what must follow from it, and what must stay.

    Half of them are Chinese, half English. Files of the same name are overwritten, others are left alone.
    """
    from posttrain.pocket.changes import as_yaml, pattern_of, prompts_of
    from posttrain.pocket.changes import changes as make

    output.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    lengths = []
    again = "run the same command again"
    when_stopped(lambda: (Problem("", f"stopped: {len(written)} of {n} change files are in {output}", again),))
    bodies: Iterable[dict[str, Any]] = make(n, seed)
    asked: frozenset[str] = frozenset()
    with shown_works(), starting_anew():
        if pattern_rows:  # which leave out what any change asks
            with Meter("making change files", n, "files", kept=None, after_s=MOMENT_S) as meter:
                made = []
                for body in bodies:
                    made.append(body)
                    meter.more(1)
            bodies = made
            asked = frozenset().union(*map(prompts_of, made))
        with Meter("writing change files", n, "files", kept=None, after_s=MOMENT_S) as meter:
            for body in bodies:
                path = output / f"{body['name']}.yaml"
                write_whole(path, as_yaml(body))
                written.append(str(path))
                if pattern_rows:
                    rows = pattern_of(body, pattern_rows, seed, asked)
                    lengths.append(len(rows))
                    _write_rows(output / "pattern" / f"{body['name']}.jsonl", rows)
                meter.more(1)
    if json:
        emit(written)
    talk(f"{n} change files in {output}")
    short = sum(length < pattern_rows for length in lengths)
    if short:
        talk(
            f"{short} of them have fewer than {pattern_rows} rows of their pattern, the shortest {min(lengths)}: "
            "pocket knows no more such facts that no change asks about"
        )


@app.command(cls=PlainCommand)
def prompts(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSONL file.")],
    n: Count = 640,
    seed: Seed = 0,
    relation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead: questions of one relation with their answers, as training rows."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write varied prompts in both languages for `replay: {kind: self, prompts: FILE}`.

    With --relation (capital, currency, ...), write prompt/completion rows of that pattern instead.
    """
    from random import Random

    from posttrain.pocket.changes import replay_prompts, same_pattern_rows
    from posttrain.pocket.grammar import LANGUAGES
    from posttrain.pocket.skills import curriculum

    when_stopped(lambda: NOT_WRITTEN)
    if relation is None:
        with shown_works(), Meter("making prompts", n, "prompts", kept=None, after_s=MOMENT_S) as meter:
            rows = replay_prompts(n, seed, meter.more)
    elif relation not in curriculum():
        raise ConfigError(Problem("--relation", f"unknown relation '{relation}'", f"known: {', '.join(curriculum())}"))
    else:
        rng = Random(f"same pattern {seed}")
        pairs = [p for x in LANGUAGES for p in same_pattern_rows(relation, x, (n + 1) // 2, rng)]
        rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs[:n]]
    _write_rows(output, rows)
    talk(f"{len(rows)} row{'' if len(rows) == 1 else 's'} in {output}")
    if len(rows) < n:
        talk(f"fewer than {n}: pocket knows no more facts of '{relation}' that locality probes leave alone")
    if json:
        emit({"file": str(output), "rows": len(rows), "seed": seed})


@starting_anew()
def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(_json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, text)
