"""`posttrain model show|convert|export|verify`: describe a model, check that it is complete, or convert it."""

from __future__ import annotations

import json as _json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from posttrain.cli.options import DownloadOption, JsonOption, TrustOption, console, emit, print_lines, size, talk
from posttrain.cli.speaking import PlainCommand, PlainGroup
from posttrain.cli.stopping import NOT_WRITTEN, when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, Problem
from posttrain.language import translate

if TYPE_CHECKING:
    from posttrain.models.convert import StoredDtype


app = typer.Typer(cls=PlainGroup, no_args_is_help=True)
NAMES = ("output", "source", "base", "model", "architecture", "dtype")
"""Rows of a table with a name, a folder or a word of the command line as value; such a value is not translated."""


@app.command(cls=PlainCommand)
def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, local folder, adapter folder, .gguf file or pocket:chat.")
    ],
    nearest: Annotated[
        int | None,
        typer.Option(
            "--nearest", metavar="K", min=1, help="Of a soft prompt: the K words nearest to each virtual token."
        ),
    ] = None,
    json: JsonOption = False,
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Print a model's architecture, size, vocabulary, chat template, fingerprints; or what a soft prompt is near to."""
    from posttrain.models.names import say_taken

    say_taken(model, talk)
    how = {"offline": not download, "trust_remote_code": trust_remote_code}
    if nearest is not None:
        _show_nearest(model, nearest, json=json, **how)
        return
    from posttrain.models.describe import describe

    with shown_works():
        rows = describe(model, **how)
    emit(rows) if json else _print_table(rows)


@app.command(cls=PlainCommand)
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .gguf file or a folder with one; or a pytorch_model.bin or .safetensors of P-Tuning v2.",
        ),
    ],
    out: Annotated[Path | None, typer.Argument(metavar="DIR", help="Folder to write; or say it by --output.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the model or adapter.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="Of a GGUF file: store float32 (default) or bfloat16.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The model that the prefix was trained for.")
    ] = None,
    flatten: Annotated[
        bool, typer.Option("--flatten", help="Write the table that a projection has come to, without the projection.")
    ] = False,
    json: JsonOption = False,
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Save a GGUF file as a model folder in safetensors; or a prefix of the ChatGLM family's code as an adapter."""
    from posttrain.models.gguf_header import is_gguf
    from posttrain.models.names import resolve

    folder = _one_of(out, output)
    when_stopped(lambda: NOT_WRITTEN)
    with shown_works():
        named = source.is_dir() or source.suffix.lower() == ".gguf"  # the only GGUF file of a folder is meant, too
        if is_gguf(source) or is_gguf(resolve(str(source)) if named else source):
            rows = _convert_gguf(source, folder, dtype, prefix_only={"--base": base is not None, "--flatten": flatten})
        elif dtype is not None:
            cause = f"{source} is no GGUF file, a prefix keeps its numbers"
            raise ConfigError(Problem("--dtype", cause, "leave it out"))
        else:
            how = {"offline": not download, "trust_remote_code": trust_remote_code}
            rows = _convert_prefix(source, folder, base, flatten=flatten, **how)
    emit(rows) if json else _print_table(rows)


@app.command(cls=PlainCommand)
def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Adapter folder, folder of a training, model folder, .gguf file, hub id."),
    ],
    out: Annotated[Path | None, typer.Argument(metavar="DIR", help="Folder to write; or say it by --output.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Write the adapter by itself; do not merge it.")] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="auto (as the base is stored), float32, bfloat16, float16.")
    ] = "auto",
    json: JsonOption = False,
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a folder that transformers loads: an adapter merged into its base, with tokenizer and chat template.

    What was written is loaded again and must say what the source, rounded to the same --dtype, says, or nothing is left
    of it. Where that rounds, answers may differ from the source's: --dtype float32 keeps them.
    """
    from posttrain.models.export import ExportDtype, export_model

    known = get_args(ExportDtype)
    if dtype not in known:
        raise ConfigError(Problem("--dtype", f"unknown '{dtype}'", f"one of {', '.join(known)}"))
    folder = _one_of(out, output)
    when_stopped(lambda: NOT_WRITTEN)
    chosen = cast("ExportDtype", dtype)
    how = {"offline": not download, "trust_remote_code": trust_remote_code}
    with shown_works():
        made = export_model(model, folder, adapter=adapter, dtype=chosen, say=talk, **how)
    if json:
        emit(made._asdict())
        return
    rows = {key.replace("_", " "): value for key, value in made._asdict().items() if key != "notes"}
    _print_table(rows | {"rounding": translate(f"{made.rounding:.2%} of outputs' spread")})
    print_lines(*made.notes)


@app.command(cls=PlainCommand)
def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model or adapter folder, folder of a training, .gguf file, hub id.")
    ],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="MODEL", help="Another model that it must be the same as, up to rounding."),
    ] = None,
    json: JsonOption = False,
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Check that a model is whole: files, headers, hashes, numbers, shapes, the tokenizer's ids; exit 1 when not."""
    from posttrain.models.names import say_taken
    from posttrain.models.verify import verify_model

    for name in (model, against) if against is not None else (model,):
        say_taken(name, talk)
    with shown_works():
        checks = verify_model(model, against=against, offline=not download, trust_remote_code=trust_remote_code)
    good = not any(check.ok is False for check in checks)
    if json:
        emit({"model": model, "ok": good, "checks": [check._asdict() for check in checks]})
    else:
        words = {True: "ok", False: "WRONG", None: "-"}
        _print_rows((translate(check.check), translate(words[check.ok]), translate(check.detail)) for check in checks)
    if not good:
        raise typer.Exit(1)


def _one_of(out: Path | None, output: Path | None) -> Path:
    """Return the folder to write, from the argument or from --output. Raise ConfigError unless exactly one is given."""
    if out is not None and output is not None:
        raise ConfigError(Problem("--output", f"is {output}, and the argument is {out}", "say the folder once"))
    folder = out if out is not None else output
    if folder is None:
        raise ConfigError(Problem("DIR", "no folder to write", "say it: DIR, for example models/mine"))
    return folder


def _convert_gguf(source: Path, folder: Path, dtype: str | None, *, prefix_only: dict[str, bool]) -> dict[str, Any]:
    from posttrain.models.convert import convert_gguf

    for option in (option for option, given in prefix_only.items() if given):
        raise ConfigError(Problem(option, "is for prefixes, and the source is a GGUF file", "leave it out"))
    if dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(Problem("--dtype", f"unknown '{dtype}'", "one of float32, bfloat16"))
    made = convert_gguf(str(source), folder, dtype=cast("StoredDtype", dtype or "float32"))
    return {key.replace("_", " "): value for key, value in made._asdict().items()}


def _convert_prefix(prefix: Path, output: Path, base: str | None, *, flatten: bool, **how: bool) -> dict[str, Any]:
    from posttrain.models.added import added_to
    from posttrain.models.prefix import Prefix
    from posttrain.models.prefix_files import prefix_model
    from posttrain.models.save import save_model
    from posttrain.tuners.ptuning_v2 import PtuningV2Config, settings_of

    settings = settings_of(PtuningV2Config(), hidden_size=1)  # the prefix file decides the other settings
    loaded = prefix_model(prefix, base, settings, flatten=flatten, **how)
    save_model(loaded.model, loaded.tokenizer, output)
    made = added_to(loaded.model)
    assert isinstance(made, Prefix)
    return {
        "output": str(output),
        "base": loaded.model.name_or_path,
        "virtual tokens": made.tokens,
        "projection": made.settings["projection"],
        "parameters": sum(p.numel() for p in made.parameters()),
    }


def _show_nearest(model: str, k: int, *, json: bool, **how: bool) -> None:
    from posttrain.models.soft_prompts import nearest_tokens

    with shown_works():
        tokens = nearest_tokens(model, k, **how)
    if json:
        emit([{**t._asdict(), "neighbours": [n._asdict() for n in t.neighbours]} for t in tokens])
        return
    from rich.table import Table

    table = Table("token", "length", "nearest words, with their cosines", box=None, padding=(0, 2, 0, 0))
    for each in tokens:
        # quote the words, so that spaces and line breaks are visible; escape square brackets, which rich would read
        words = "  ".join(f"{_json.dumps(n.text, ensure_ascii=False)} {n.cosine:.2f}" for n in each.neighbours)
        table.add_row(str(each.number), f"{each.norm:.2f}", words.replace("[", "\\["))
    console(stderr=False).print(table)
    talk("length: of the vector, over the mean length of an embedding")


def _print_table(rows: dict[str, Any]) -> None:
    """Print a table of labels and values, in words."""
    _print_rows((translate("size" if key == "gib" else key), _in_words(key, value)) for key, value in rows.items())


def _print_rows(rows: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(Text, row))
    for column in table.columns:
        column.overflow = "fold"
    console(stderr=False).print(table)


def _in_words(key: str, value: Any) -> str:
    """Return a value of a table in words; a name stays as it is."""
    if key == "gib":
        return size(value)
    if isinstance(value, bool):
        return translate("yes" if value else "no")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or translate("nothing")
    return str(value) if key in NAMES else translate(str(value))
