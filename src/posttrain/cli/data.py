"""`posttrain data show | check`: show what training would see of a data file, before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from posttrain.cli import data_make
from posttrain.cli.options import (
    ColumnsOption,
    DownloadOption,
    JsonOption,
    TrustOption,
    console,
    emit,
    mapped,
    print_lines,
    talk,
)
from posttrain.cli.plain import column as filled
from posttrain.cli.plain import plain
from posttrain.cli.speaking import PlainCommand, PlainGroup
from posttrain.errors import Problem, TemplateError
from posttrain.language import translate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.chat import Encoded
    from posttrain.data.readers import ReadResult
    from posttrain.data.survey import Lengths, StopCheck


app = typer.Typer(cls=PlainGroup, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(data_make.app, name="make")

COUNTED = {"supervised_tokens": "supervised tokens", "too_long": "too long"}
"""Counts that have another name in print than in JSON."""

OPEN, CLOSE = "⟦", "⟧"
"""The brackets around supervised text if the output has no colours."""

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="A .jsonl, .csv, .parquet or .txt file; a data set's name with --hub.")
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="Whose tokenizer and chat template to use.")
]
MaxLengthOption = Annotated[int, typer.Option(metavar="N", min=1, help="Longest row in tokens.")]
HubOption = Annotated[bool, typer.Option("--hub", help="FILE is a data set on the Hugging Face hub.")]
SubsetOption = Annotated[str | None, typer.Option(metavar="NAME", help="The hub data set's configuration.")]
SplitOption = Annotated[str, typer.Option(metavar="NAME", help="The hub data set's split.")]
LossOption = Annotated[Literal["assistant", "all"], typer.Option("--loss-on", help="Which tokens are learned.")]
BadRowOption = Annotated[
    Literal["fail", "skip"], typer.Option(help="A bad row is an error, or is left out and counted.")
]


@app.command(cls=PlainCommand)
def show(
    file: FileArgument,
    model: ModelOption,
    rows: Annotated[int, typer.Option("--rows", "-n", metavar="N", min=0, help="How many rows to print.")] = 3,
    max_length: MaxLengthOption = 1024,
    loss_on: LossOption = "assistant",
    hub: HubOption = False,
    subset: SubsetOption = None,
    split: SplitOption = "train",
    column: ColumnsOption = None,
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Print rows as the model will see them: what is learned is coloured (in ⟦ ⟧ off a terminal), special tokens shown.

    Then the lengths of all rows, and whether generation stops at the token that the learned turns end with.
    """
    from posttrain.data.lengths import data_error
    from posttrain.data.survey import segments, survey, unknown_tokens

    where = {"hub": file, "subset": subset, "split": split, "download": download} if hub else {"path": file}
    how = {"offline": not download, "trust_remote_code": trust_remote_code}
    read, tokenizer, known = _read(where, column, model, how)
    found = survey(read.records, tokenizer, loss_on=loss_on)
    problems = [*read.problems, *found.problems, *unknown_tokens(found.rows, tokenizer, known)]
    checks = _checked(found.rows, tokenizer, model, max_length, how)
    shown = found.rows[:rows]
    if json:
        told = [str(problem) for problem in problems[:20]]
        rows_told = [
            {"place": row.location, "tokens": len(row.input_ids), "supervised": _supervised(row)}
            | {"segments": [segment._asdict() for segment in segments(row, tokenizer)]}
            for row in shown
        ]
        counts = {"rows": read.rows, "bad": len(problems), "problems": told}
        emit({**_read_json(file, model, read), **counts, "shown": rows_told} | checks.to_json(max_length))
    else:
        for row in shown:
            _print_row(row, [(s.text, s.supervised) for s in segments(row, tokenizer)])
        print_lines(f"format   {read.recognised()}", *(f"note     {plain(note)}" for note in read.notes))
        print_lines(f"rows     {read.rows:,}, {len(problems):,} of them bad")
        if (lengths := checks.lengths) is not None:
            print_lines(
                f"tokens   {lengths.total:,}; per row: shortest {lengths.min:,}, median {lengths.median:,}, "
                f"95 % at most {lengths.p95:,}, longest {lengths.max:,}",
                f"over     {lengths.over:,} rows are longer than max_length {max_length:,}",
            )
        _print_checks(checks)
    if not found.rows:
        raise data_error(problems, read.rows)
    if not json:
        _talk_problems("bad row", problems)


@app.command(cls=PlainCommand)
def check(
    file: FileArgument,
    model: ModelOption,
    max_length: MaxLengthOption = 1024,
    over_long: Annotated[
        Literal["raise", "drop", "truncate"], typer.Option(help="Rows over --max-length are errors, left out, or cut.")
    ] = "raise",
    on_bad_row: BadRowOption = "fail",
    loss_on: LossOption = "assistant",
    hub: HubOption = False,
    subset: SubsetOption = None,
    split: SplitOption = "train",
    column: ColumnsOption = None,
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Read and render every row as training would, and count. Exit code 1 when rows cannot be used."""
    from posttrain.data.lengths import data_error, listed
    from posttrain.data.survey import count

    where = {"hub": file, "subset": subset, "split": split, "download": download} if hub else {"path": file}
    how = {"offline": not download, "trust_remote_code": trust_remote_code}
    read, tokenizer, known = _read(where, column, model, how)
    if known is not None and tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= known:
        talk(f"the padding token {tokenizer.pad_token} is beyond the model's {known} embeddings: another one will pad")
    found = count(read, tokenizer, max_length=max_length, over_long=over_long, loss_on=loss_on, known=known)
    checks = _checked(found.texts, tokenizer, model, max_length, how)
    if json:
        problems = [*found.problems, *(found.error.problems if found.error else ())]
        told = [{"place": p.location, "cause": p.cause, "mend": p.mend} for p in problems]
        emit({**_read_json(file, model, read), **found.numbers(), **checks.to_json(max_length), "problems": told})
    else:
        for name, number in found.numbers().items():
            print(f"{filled(translate(COUNTED.get(name, name)), 18)}{number:>12,}")
        print_lines(f"format   {read.recognised()}", *(f"note     {plain(note)}" for note in read.notes))
        _print_checks(checks)
    if found.error is not None:  # rows are too long, or none are left
        raise type(found.error)(*listed(read.problems), *found.error.problems) from found.error
    if found.problems and (on_bad_row == "fail" or not found.usable):
        raise data_error(found.problems, read.rows)
    _talk_problems("left out", found.problems)


class _Checks(NamedTuple):
    """The results of checking all rows together.

    lengths, stop: None if no row can be used; prompt: the problem of the generation prompt, or ""; template: why
    training and exams will refuse the model, "" if its template is the one that it was trained with."""

    lengths: Lengths | None
    stop: StopCheck | None
    prompt: str
    template: str

    def to_json(self, max_length: int) -> dict[str, Any]:
        return {
            "lengths": {**self.lengths._asdict(), "max_length": max_length} if self.lengths else None,
            "stop": self.stop._asdict() if self.stop else None,
            "prompt_problem": self.prompt,
            "template_problem": self.template,
        }


def _checked(
    rows: list[Encoded], tokenizer: PreTrainedTokenizerBase, model: str, max_length: int, how: dict[str, bool]
) -> _Checks:
    from posttrain.data.survey import check_prompt, check_stop, lengths_of
    from posttrain.models.fingerprint import check_template
    from posttrain.models.load import stop_ids

    lengths = lengths_of(rows, max_length) if rows else None
    stop = check_stop(rows, tokenizer, stop_ids(model, tokenizer, **how)) if rows else None
    try:
        check_template(model, tokenizer)
    except TemplateError as error:
        return _Checks(lengths, stop, check_prompt(tokenizer), str(error))
    return _Checks(lengths, stop, check_prompt(tokenizer), "")


def _read_json(file: str, model: str, read: ReadResult) -> dict[str, Any]:
    return {"file": file, "model": model, "format": read.recognised(), "notes": list(read.notes)}


def _read(
    where: dict[str, Any], column: list[str] | None, model: str, how: dict[str, bool]
) -> tuple[ReadResult, PreTrainedTokenizerBase, int | None]:
    """Return the rows, good and bad, the model's tokenizer, and the number of its embeddings or None."""
    from posttrain.config.load import check as validate
    from posttrain.data.readers import DataSource, sift
    from posttrain.models.load import embeddings_of, load_tokenizer
    from posttrain.models.names import say_taken

    source = validate({**where, "columns": mapped(column or [])}, DataSource, "command line")
    say_taken(model, talk)
    tokenizer = load_tokenizer(model, **how)
    return sift(source), tokenizer, embeddings_of(model, **how)


def _supervised(row: Encoded) -> int:
    return sum(label >= 0 for label in row.labels)


def _print_row(row: Encoded, parts: list[tuple[str, bool]]) -> None:
    from rich.text import Text

    supervised = _supervised(row)
    location = Path(row.location).name if "/" in row.location else row.location
    head = translate(f"{plain(location)}: {len(row.input_ids)} tokens, {supervised} learned")
    if not sys.stdout.isatty():
        body = "".join(f"{OPEN}{plain(text)}{CLOSE}" if learned else plain(text) for text, learned in parts)
        print(f"--- {head}\n{body}\n")
        return
    out = console(stderr=False)
    out.print(Text(f"─── {head}", style="bold"))
    out.print(Text.assemble(*((plain(text), "bold green" if learned else "dim") for text, learned in parts)))
    out.print()


def _print_checks(checks: _Checks) -> None:
    stop = checks.stop
    told = "stop     not known: no row can be used"
    if stop is not None and stop.problem:
        told = f"stop     PROBLEM: {stop.problem}"
    elif stop is not None:
        told = f"stop     ok: turns end with {', '.join(stop.ends)}, generation stops at {', '.join(stop.stops)}"
    prompt = f"prompt   PROBLEM: {plain(checks.prompt)}"
    print_lines(
        told,
        prompt if checks.prompt else "prompt   ok: generation begins as the trained text does",
        f"template PROBLEM: {plain(checks.template)}" if checks.template else "",
    )


def _talk_problems(what: str, problems: list[Problem]) -> None:
    from posttrain.data.lengths import grouped

    groups = grouped(problems)
    for problem, _ in groups[:20]:
        talk(f"{what}: {plain(str(problem))}")
    if more := sum(count for _, count in groups[20:]):
        talk(f"... and {more} more")
