"""`posttrain train`: train a model on examples, as a YAML file or options say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain import registry
from posttrain.cli.options import (
    ColumnsOption,
    DownloadOption,
    DryRunOption,
    JsonOption,
    OutputOption,
    SetOption,
    TrustOption,
    emit,
    mapped,
    print_lines,
    quiet,
    size,
    talk,
    time_line,
)
from posttrain.cli.stopping import when_stopped
from posttrain.errors import ConfigError, Problem
from posttrain.errors import shell_word as quoted

if TYPE_CHECKING:
    from posttrain.training.config import TrainConfig
    from posttrain.training.preview import Preview


def _kinds(what: str, seam: str) -> str:
    return f"{what}: {', '.join(registry.kinds(seam))} (posttrain list {seam}s says what each is)."


def train(
    file: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="What to train, and how.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Hub id, folder, or pocket:chat.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="FILE", help="Examples: .jsonl, .csv, .parquet or .txt.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="KIND", help=_kinds("What is minimised", "objective"))
    ] = None,
    tuner: Annotated[str | None, typer.Option(metavar="KIND", help=_kinds("Which parameters move", "tuner"))] = None,
    column: ColumnsOption = None,
    output: OutputOption = None,
    sets: SetOption = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start over instead of resuming.")] = False,
    on_bad_row: Annotated[
        str | None,
        typer.Option("--on-bad-row", metavar="fail|skip", help="A bad row is an error, or is left out and counted."),
    ] = None,
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Train a model on examples. Ctrl-C saves; the same command goes on where it stopped.

    Options win over the file; --set reaches every key: --set optimizer.learning_rate=1e-4 --set tuner.rank=8.
    """
    given = {
        "model": model,
        "data": data,
        "objective": objective,
        "tuner": tuner,
        "on_bad_row": on_bad_row,
        "download": download or None,
        "trust_remote_code": trust_remote_code or None,
    }
    given = {k: v for k, v in given.items() if v is not None}
    config, folder = configured(file, given, output, sets or [], mapped(column or []))
    base = file.parent if file else Path()
    if dry_run:
        from posttrain.training.preview import preview

        seen = preview(config, base=base, say=talk)
        wall_s = _wall_s(config, seen)
        if json:
            emit({**seen._asdict(), "wall_s": wall_s})
            return
        print_lines(
            f"rows        {seen.rows:,} with {seen.row_tokens:,} tokens"
            + (f", {seen.validation_rows:,} more for validation" if seen.validation_rows else ""),
            f"steps       {seen.steps:,} ({seen.epochs:.2f} passes over the rows)",
            f"tokens      {seen.tokens:,} read in all",
            f"parameters  {seen.trainable:,} of {seen.parameters:,} move ({seen.trainable / seen.parameters:.2%})",
            f"rate        {rate_line(config, seen.learning_rate)}",
            f"precision   {seen.precision}",
            f"disk        {size(seen.disk_gib)} at most: {size(seen.model_gib)} for the result, "
            f"{size(seen.checkpoint_gib)} per checkpoint",
            time_line(wall_s),
            f"output      {folder}",
        )
        return

    from posttrain.training.lock import check_free

    check_free(folder)  # before the model is loaded, so that an error comes immediately
    if not restart:
        from posttrain.training.checkpoints import check_settings

        check_settings(folder, config)
    from posttrain.training.signals import what_is_kept

    when_stopped(lambda: (what_is_kept(folder, resume=not restart),))
    from posttrain.training.progress import progress_for
    from posttrain.training.run import train as run

    result = run(config, output=folder, resume=not restart, progress=progress_for(silent=quiet()), base=base)
    if json:
        emit(
            {
                "output": str(folder),
                "model": str(folder / "model"),
                **{key: result._asdict()[key] for key in ("steps", "loss_nats", "tokens", "wall_s", "peak_gib")},
                "trainable": result.moved.trainable,
                "parameters": result.moved.total,
                "stopped": result.stopped,
                "best_step": result.best_step,
            }
        )
    else:
        if quiet() or not (sys.stdout.isatty() and sys.stderr.isatty()):  # else the user has just read the path
            print(folder / "model")
        made = quoted(str(folder / "model"))
        talk(f"try it: posttrain {f'chat {made}' if chats(config) else f'predict {made} FILE'}")


def _wall_s(config: TrainConfig, seen: Preview) -> float:
    """Estimate the seconds of a run, with its search for a learning rate."""
    from posttrain.studies.speed import flops_per_s, training_s
    from posttrain.training.rates import TRIES

    tries = TRIES if seen.learning_rate is None else 0
    tokens = seen.tokens + tries * seen.tokens // max(seen.steps, 1)
    return training_s(seen.parameters, tokens, seen.steps + tries, flops_per_s())


def rate_line(config: TrainConfig, rate: float | None) -> str:
    """Return the learning rate and its source in words. rate: None if the run searches for it."""
    if rate is None:
        return "found by a range test when the run begins (learning_rate: find)"
    auto = config.optimizer.learning_rate == "auto"
    return f"{rate:g}" + (", the default for this tuner and size of model (learning_rate: auto)" if auto else "")


def chats(config: TrainConfig) -> bool:
    """Return whether the trained model answers in text, and does not classify, tag or read."""
    from posttrain.training.forms import form_of

    return form_of(config.objective).head == "causal"


DATA_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".pq", ".txt", ".conll", ".conllu", ".xlsx")
"""Endings of the names of files that hold rows, not settings."""


def is_data(file: Path) -> bool:
    """Return whether a file that was given as a configuration holds rows; a .json file does if it holds a list."""
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(".json") and file.suffix.lower() == ".json" and file.is_file():
        with file.open("rb") as text:
            return text.read(100).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
    return name.endswith(DATA_ENDINGS)


def configured(
    file: Path | None,
    given: dict[str, Any],
    output: Path | None,
    sets: list[str],
    columns: dict[str, str] | None = None,
) -> tuple[TrainConfig, Path]:
    """Return the training configuration and the folder of the run.

    Paths in a file are relative to the file, paths on the command line to the working folder. Without `output`, the
    folder is the file's `output` or runs/<file's name>; without a file, `output` must be given.
    given: values of options, which replace those of the file; sets: the values of --set; columns: our name -> theirs.
    Raise ConfigError if the file holds rows, or if the model, the data or the folder is missing.
    """
    from posttrain.config.load import apply_sets, check, read_yaml
    from posttrain.models.gguf_header import is_gguf
    from posttrain.training.config import TrainConfig

    if file is not None and is_data(file):
        name = quoted(file.name.split(".")[0])
        command = f"posttrain train --data {quoted(str(file))} --model MODEL --output runs/{name}"
        raise ConfigError(Problem(str(file), "that is data, not a configuration", command))
    node: dict[str, Any] = read_yaml(file, "train") if file else {}
    for key, value in given.items():
        node[key] = value
    own = apply_sets(node, [*(f"data.columns.{ours}={theirs!r}" for ours, theirs in (columns or {}).items()), *sets])
    if "model" not in node:
        mend = "add `model:` to the file or give --model"
        raise ConfigError(Problem(str(file or "train"), "no model", f"{mend}, for example pocket:chat"))
    if "data" not in node:
        raise ConfigError(Problem(str(file or "train"), "no data", "add `data: rows.jsonl` or give --data rows.jsonl"))
    config = check(node, TrainConfig, str(file or "command line"), own)
    if file is not None:
        moved: dict[str, Any] = {}
        if "data" not in given and config.data is not None:
            moved["data"] = config.data.at(file.parent)
        if config.validation is not None:
            moved["validation"] = config.validation.at(file.parent)
        beside = file.parent / config.model
        if "model" not in given and not Path(config.model).is_absolute() and (beside.is_dir() or is_gguf(beside)):
            moved["model"] = str(beside)
        inside = {name: file.parent / value for name, value in config.tuner if isinstance(value, Path)}
        moved |= {"tuner": config.tuner.model_copy(update=inside)} if inside else {}
        config = config.model_copy(update=moved)
    if output is not None:
        return config, output
    if config.output is not None:
        return config, (file.parent if file else Path()) / config.output
    if file is not None:
        return config, Path("runs") / file.stem
    raise ConfigError(Problem("train", "no output folder", "give --output runs/first"))
