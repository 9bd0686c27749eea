"""`posttrain data make changes|prompts`: make change files and replay prompts from the pocket models' facts."""

from __future__ import annotations

import json as _json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.cli.options import JsonOption, emit, talk
from posttrain.cli.speaking import PlainCommand, PlainGroup
from posttrain.cli.stopping import NOT_WRITTEN, when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, Problem
from posttrain.models.disk import starting_anew, write_whole
from posttrain.models.meter import MOMENT_S, Meter

app = typer.Typer(
    cls=PlainGroup, no_args_is_help=True, help="Make change files, or prompts for replay, from pocket's facts."
)
LISTED = 5
"""The number of existing files that an error names; the others are only counted."""

Count = Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many.")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Seed; other seeds draw other facts.")]
Restart = Annotated[bool, typer.Option("--restart", help="Overwrite files that are there with other content.")]


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
    together: Annotated[
        bool, typer.Option("--together", help="For one model that learns all: no fact twice, no probe about another.")
    ] = False,
    probes: Annotated[
        int | None, typer.Option("--probes", metavar="N", min=1, help="At most N probes of each kind.")
    ] = None,
    restart: Restart = False,
    json: JsonOption = False,
) -> None:
    """Write change files: one new fact each, what must follow from it, and what must stay.

    Half of them are Chinese, half English. A file of the same name with other content, such as one edited by hand, is
    overwritten with --restart only; other files are left alone, and counted.
    """
    from posttrain.data.pocket.changes import as_yaml, for_one_model, pattern_of, prompts_of, shortened
    from posttrain.data.pocket.changes import changes as make

    written: list[str] = []
    lengths = []
    again = "run the same command again"
    when_stopped(lambda: (Problem("", f"stopped: {len(written)} of {n} change files are in {output}", again),))
    with shown_works(), starting_anew():
        bodies: list[dict[str, Any]] = []
        with Meter("making change files", n, "files", kept=None, after_s=MOMENT_S) as meter:
            for body in _for_one(for_one_model, n, seed) if together else make(n, seed):
                bodies.append(body if probes is None else shortened(body, probes))
                meter.more(1)
        asked = frozenset().union(*map(prompts_of, bodies))  # the pattern rows leave these out
        files = {output / f"{body['name']}.yaml": as_yaml(body) for body in bodies}
        patterns = {}
        for body in bodies if pattern_rows else ():
            rows = pattern_of(body, pattern_rows, seed, asked)
            lengths.append(len(rows))
            patterns[output / "pattern" / f"{body['name']}.jsonl"] = _lines(rows)
        other = _with_other_content({**files, **patterns}, restart=restart)
        others = sorted(set(output.glob("*.yaml")) - files.keys()) if output.is_dir() else []
        for path, text in patterns.items():
            write_whole(path, text)
        with Meter("writing change files", n, "files", kept=None, after_s=MOMENT_S) as meter:
            for path, text in files.items():
                write_whole(path, text)
                written.append(str(path))
                meter.more(1)
    if json:
        emit(written)
    talk(f"{n} change file{'' if n == 1 else 's'} in {output}")
    if other:
        talk(f"overwritten, with other content before: {len(other)}")
    if others:
        talk(f"other .yaml files that were there already, which {output}/*.yaml names too: {len(others)}")
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
    restart: Restart = False,
    json: JsonOption = False,
) -> None:
    """Write varied prompts in both languages for `replay: {kind: self, prompts: FILE}`.

    With --relation (capital, currency, ...), write prompt/completion rows of that pattern instead.
    """
    from random import Random

    from posttrain.data.pocket.changes import replay_prompts, same_pattern_rows
    from posttrain.data.pocket.skills import LANGUAGES, curriculum

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
    text = _lines(rows)
    other = _with_other_content({output: text}, restart=restart)
    write_whole(output, text)
    if other:
        talk("overwritten, with other content before: 1")
    talk(f"{len(rows)} row{'' if len(rows) == 1 else 's'} in {output}")
    if len(rows) < n:
        talk(f"fewer than {n}: pocket knows no more facts of '{relation}' that locality probes leave alone")
    if json:
        emit({"file": str(output), "rows": len(rows), "seed": seed})


def _for_one(make: Callable[[int, int], list[dict[str, Any]]], n: int, seed: int) -> list[dict[str, Any]]:
    """Return changes for one model. Raise ConfigError if pocket does not know so many facts."""
    try:
        return make(n, seed)
    except ValueError as error:
        raise ConfigError(Problem("--n", str(error), "ask for fewer, or leave --together out")) from error


def _lines(rows: list[dict[str, str]]) -> str:
    return "".join(_json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _with_other_content(files: Mapping[Path, str], *, restart: bool) -> list[Path]:
    """Return the existing files with other content than the given one. files: path -> content to write. Without
    `restart`, raise ConfigError with the names of such files, before anything is written."""
    other = [path for path, text in files.items() if path.is_file() and path.read_bytes() != text.encode("utf-8")]
    if other and not restart:
        cause = "is there already with other content, and would be overwritten"
        mend = "give another --output, or --restart to overwrite"
        named = [Problem(str(path), cause, mend) for path in other[:LISTED]]
        more = len(other) - len(named)
        raise ConfigError(*named, *([Problem("", f"... and {more} more")] if more else []))
    return other
