"""The option layer that every verb shares, and the two ways a verb speaks.

Data goes to stdout (`emit`), talk goes to stderr (`talk`, `console`). `--debug` and `--quiet` may stand anywhere on the
command line and are taken out by `main` before the verb sees it, so that no verb declares them.

    def exam(model: str, json: JsonOption = False, sets: SetOption = None) -> None: ...
"""

from __future__ import annotations

import json as _json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "EVERYWHERE",
    "DownloadOption",
    "DryRunOption",
    "JsonOption",
    "MismatchOption",
    "OutputOption",
    "PlainCommand",
    "PlainGroup",
    "PrecisionOption",
    "SetOption",
    "TrustOption",
    "console",
    "debug",
    "emit",
    "hush",
    "quiet",
    "take_global",
    "talk",
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; talk goes to stderr.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, e.g. optimizer.max_steps=20."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and how long it takes.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the results go.")]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Allow a model or data set to be fetched from the Hugging Face hub.")
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that a model brings along.")]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option("--precision", help="Of the weights and what is computed; auto: float32 on a CPU."),
]
MismatchOption = Annotated[
    bool,
    typer.Option("--allow-template-mismatch", help="Go on though a model was trained with another chat template."),
]


class PlainCommand(TyperCommand):
    """A command whose help shows nothing to be typed after a switch (typer writes `<bool>`)."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, switches with an empty metavar."""
        return _without_bool(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """The same for a verb with sub-verbs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, switches with an empty metavar."""
        return _without_bool(super().get_params(ctx))


def _without_bool(params: list[Any]) -> list[Any]:
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
            param.metavar = ""
    return params


EVERYWHERE = "Everywhere: --debug shows the traceback of an error, --quiet keeps stderr silent."

_state = {"debug": False, "quiet": False}


def take_global(arguments: Sequence[str]) -> list[str]:
    """Remember --debug and --quiet and return the arguments without them; what follows a bare `--` is left alone."""
    _state.update(debug=os.environ.get("POSTTRAIN_DEBUG", "") not in ("", "0"), quiet=False)
    rest: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            rest += arguments[i:]
            break
        if argument in ("--debug", "--quiet"):
            _state[argument.removeprefix("--")] = True
        else:
            rest.append(argument)
    _hear_the_library()
    return rest


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
    logging.getLogger("posttrain").setLevel(logging.ERROR if quiet() else logging.WARNING)


def talk(message: str = "") -> None:
    """Say something to a person: one line on stderr, nothing with --quiet."""
    if not quiet():
        print(message, file=sys.stderr, flush=True)


def console(*, stderr: bool = True) -> Console:
    """A rich console on stderr (talk, silent with --quiet) or on stdout (data)."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=stderr and quiet(), highlight=False, soft_wrap=True)


def emit(data: Any) -> None:
    """The result as one JSON document on stdout; Chinese stays readable, a NaN is an error."""
    sys.stdout.write(_json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()
