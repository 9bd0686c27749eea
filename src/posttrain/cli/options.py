"""The options that every verb shares, and the two kinds of output of a verb.

Data goes to stdout (`emit`), talk (messages for people) goes to stderr (`talk`, `console`). `--debug`, `--quiet` and
`--language` (the language of messages) may appear anywhere on the command line. `main` removes them before the verb
reads it, so that no verb declares them. Talk is translated where it is shown (`posttrain.language`).

    def exam(model: str, json: JsonOption = False, sets: SetOption = None) -> None: ...
"""

from __future__ import annotations

import itertools
import json as _json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from posttrain import language
from posttrain.errors import ConfigError, Problem
from posttrain.language import translate
from posttrain.models.meter import clock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; talk goes to stderr.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, e.g. optimizer.max_steps=20."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done and about how long it takes; nothing is done.")
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the results go.")]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Allow a model or data set to be fetched from the Hugging Face hub.")
]
ColumnsOption = Annotated[
    list[str] | None, typer.Option("--column", metavar="OURS=THEIRS", help="Map a column, e.g. prompt=question.")
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that a model brings along.")]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option("--precision", help="Of the weights and what is computed; auto: float32 on a CPU."),
]
MismatchOption = Annotated[
    bool, typer.Option("--allow-template-mismatch", help="Go on though a model was trained with another chat template.")
]


EVERYWHERE = (
    "Everywhere: --debug shows the traceback of an error, --quiet keeps stderr silent, --language en|zh-TW says in "
    "which language you are spoken to (else LANGUAGE, LC_ALL, LC_MESSAGES or LANG says it)."
)

PACKAGE = Path(__file__).parent.parent

_state = {"debug": False, "quiet": False, "json": False, "emitted": False}


def take_global(arguments: Sequence[str]) -> list[str]:
    """Store --debug, --quiet and --language, and return the arguments without them; after a bare `--`, none is read.

    Without --language, the environment decides the language. Raise ConfigError if the language is missing.
    """
    _state.update(debug=os.environ.get("POSTTRAIN_DEBUG", "") not in ("", "0"), quiet=False, emitted=False)
    _state["json"] = "--json" in itertools.takewhile(lambda word: word != "--", arguments)
    language.speak(language.from_environment(os.environ))
    rest: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += [word, *words]
            break
        if word in ("--debug", "--quiet"):
            _state[word.removeprefix("--")] = True
        elif word == "--language":
            if not words:
                raise ConfigError(Problem(word, "the language is missing", f"known: {', '.join(language.LANGUAGES)}"))
            language.speak(words.pop(0))
        elif word.startswith("--language="):
            language.speak(word.partition("=")[2])
        else:
            rest.append(word)
    _hear_the_library()
    return rest


def _speak(wanted: str | None) -> str:
    """Set the language from a verb's own option -l, if it is given, and return the language in use."""
    if wanted is not None:
        language.speak(wanted)
    return language.spoken()


LanguageOption = Annotated[
    str | None,
    typer.Option(
        "--language",
        "-l",
        metavar="en|zh-TW",
        callback=_speak,
        is_eager=True,
        help="The language of messages, table and report; the page can switch.",
    ),
]


def mapped(columns: Sequence[str]) -> dict[str, str]:
    """Return the columns that --column maps: our name -> their name. Raise ConfigError for a value without `=`."""
    found: dict[str, str] = {}
    for item in columns:
        ours, equals, theirs = item.partition("=")
        if not equals:
            raise ConfigError(Problem(f"--column {item}", "expected OURS=THEIRS", "for example prompt=question"))
        found[ours] = theirs
    return found


def debug() -> bool:
    """Return whether tracebacks are shown (`--debug` or POSTTRAIN_DEBUG=1)."""
    return _state["debug"]


def quiet() -> bool:
    """Return whether talk on stderr is switched off (`--quiet`)."""
    return _state["quiet"]


def hush() -> None:
    """Switch talk off, as --quiet does. Only the first process of torchrun talks."""
    _state["quiet"] = True
    _hear_the_library()


def _hear_the_library() -> None:
    """Show the library's log messages and warnings as talk, such as the memory that a GGUF file will take."""
    library = logging.getLogger("posttrain")
    library.setLevel(logging.ERROR if quiet() else logging.WARNING)
    if not any(isinstance(handler, _Talk) for handler in library.handlers):
        library.addHandler(_Talk())
    warnings.formatwarning = _warning


class _Talk(logging.Handler):
    """Prints log messages to stderr, translated."""

    def emit(self, record: logging.LogRecord) -> None:
        print(translate(record.getMessage()), file=sys.stderr, flush=True)


_as_python = warnings.formatwarning


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning: a warning of this package as a translated line, any other one as Python writes it."""
    if category is UserWarning and Path(filename).is_relative_to(PACKAGE):
        return f"{translate(str(message))}\n"
    return _as_python(message, category, filename, lineno, line)


def talk(message: str = "") -> None:
    """Print a translated message for a person to stderr; print nothing with --quiet."""
    if not quiet():
        print(translate(message), file=sys.stderr, flush=True)


def print_lines(*lines: str) -> None:
    """Print the lines of a result for people to stdout, translated, without the empty ones."""
    for line in filter(None, lines):
        print(translate(line))


def size(gib: float) -> str:
    """Return a size in GiB, or in MiB if it is less than one GiB."""
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB"


def time_line(seconds: float) -> str:
    """Return the line of a dry run about time: an estimate by arithmetic, within a factor of three."""
    low, high = clock(seconds / 3), clock(max(3 * seconds, 1))
    return f"time        about {low} to {high} on this machine: a guess by arithmetic; loading is not counted"


def table(*heads: str, right: Sequence[str] = ()) -> Table:
    """Return a table without lines in which no text is cut. right: the heads of columns that are aligned right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        made.add_column(translate(head) if head else "", justify="right" if head in right else "left", overflow="fold")
    return made


def console(*, stderr: bool = True) -> Console:
    """Return a rich console on stderr (talk, silent with --quiet) or on stdout (data)."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=stderr and quiet(), highlight=False, soft_wrap=True)


def emit(data: Any) -> None:
    """Print the result as one JSON document to stdout. Chinese stays readable; raise ValueError for a NaN."""
    _write(_json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False, default=str))


def emit_line(data: Any) -> None:
    """Print one of several results as a line of JSON to stdout."""
    _write(_json.dumps(data, ensure_ascii=False))


def emit_failure(code: int, *problems: Problem) -> None:
    """With --json, print that the verb failed, and why, if nothing was printed to stdout yet.

    So a program can always read one document, whatever the exit code. Only the first process of torchrun prints it.
    """
    if _state["json"] and not _state["emitted"] and os.environ.get("RANK", "0") == "0":
        told = [{"place": p.location, "cause": p.cause, "mend": p.mend} for p in problems]
        emit({"error": "\n".join(map(str, problems)), "exit_code": code, "problems": told})


def _write(text: str) -> None:
    _state["emitted"] = True
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
