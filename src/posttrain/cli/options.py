"""The option layer that every verb shares, and the two ways a verb speaks.

Data goes to stdout (`emit`), talk goes to stderr (`talk`, `console`). `--debug` and `--quiet` may stand anywhere on the
command line and are taken out by `main` before the verb sees it, so that no verb declares them; so may `--language`,
which says in which language people are spoken to. Talk is translated where it is shown (`posttrain.language`).

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
    """Remember --debug, --quiet and --language and return the arguments without them; a bare `--` ends them.

    Without --language the environment says which language is spoken.
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
    """The language of a verb's own -l, in which it goes on to speak; without it, the one that is spoken already."""
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
    """What --column says, ours to theirs."""
    found: dict[str, str] = {}
    for item in columns:
        ours, equals, theirs = item.partition("=")
        if not equals:
            raise ConfigError(Problem(f"--column {item}", "expected OURS=THEIRS", "for example prompt=question"))
        found[ours] = theirs
    return found


def debug() -> bool:
    """Whether tracebacks are wanted (`--debug` or POSTTRAIN_DEBUG=1)."""
    return _state["debug"]


def quiet() -> bool:
    """Whether talk on stderr is unwanted (`--quiet`)."""
    return _state["quiet"]


def hush() -> None:
    """From now on as with --quiet: of the processes of torchrun only the first talks."""
    _state["quiet"] = True
    _hear_the_library()


def _hear_the_library() -> None:
    """What the library says by itself, such as the memory that a GGUF file will take, is talk too."""
    library = logging.getLogger("posttrain")
    library.setLevel(logging.ERROR if quiet() else logging.WARNING)
    if not any(isinstance(handler, _Talk) for handler in library.handlers):
        library.addHandler(_Talk())
    warnings.formatwarning = _warning


class _Talk(logging.Handler):
    """What is logged, said."""

    def emit(self, record: logging.LogRecord) -> None:
        print(translate(record.getMessage()), file=sys.stderr, flush=True)


_as_python = warnings.formatwarning


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of this package as a line for people; those of others as Python writes them."""
    if category is UserWarning and Path(filename).is_relative_to(PACKAGE):
        return f"{translate(str(message))}\n"
    return _as_python(message, category, filename, lineno, line)


def talk(message: str = "") -> None:
    """Say something to a person: one line on stderr, nothing with --quiet."""
    if not quiet():
        print(translate(message), file=sys.stderr, flush=True)


def print_lines(*lines: str) -> None:
    """Lines of a result that people read, on stdout, in the language that is spoken; those that are empty left out."""
    for line in filter(None, lines):
        print(translate(line))


def size(gib: float) -> str:
    """GiB, or MiB when that is less than one."""
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB"


def time_line(seconds: float) -> str:
    """The line of a dry run about time: a guess by arithmetic, within a factor of three."""
    low, high = clock(seconds / 3), clock(max(3 * seconds, 1))
    return f"time        about {low} to {high} on this machine: a guess by arithmetic; loading is not counted"


def table(*heads: str, right: Sequence[str] = ()) -> Table:
    """A table without lines in which nothing is cut; right: the columns of numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        made.add_column(translate(head) if head else "", justify="right" if head in right else "left", overflow="fold")
    return made


def console(*, stderr: bool = True) -> Console:
    """A rich console on stderr (talk, silent with --quiet) or on stdout (data)."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=stderr and quiet(), highlight=False, soft_wrap=True)


def emit(data: Any) -> None:
    """The result as one JSON document on stdout; Chinese stays readable, a NaN is an error."""
    _write(_json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False, default=str))


def emit_line(data: Any) -> None:
    """One of several results, as a line of JSON on stdout."""
    _write(_json.dumps(data, ensure_ascii=False))


def emit_failure(code: int, *problems: Problem) -> None:
    """With --json, where nothing is on stdout yet: that the verb failed, and why. A program always has one document to
    read, whatever the exit code.
    """
    if _state["json"] and not _state["emitted"] and os.environ.get("RANK", "0") == "0":
        told = [{"place": p.location, "cause": p.cause, "mend": p.mend} for p in problems]
        emit({"error": "\n".join(map(str, problems)), "exit_code": code, "problems": told})


def _write(text: str) -> None:
    _state["emitted"] = True
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
