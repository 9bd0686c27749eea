"""`posttrain VERB ...`: the verbs, which are imported only when they are used, and the exit codes.

`posttrain --help` reads only the table below, so help never imports torch. A verb's module offers a function (one
command) or a `typer.Typer` (a verb with sub-verbs). Packages that use torch are imported inside those functions.

Exit codes: 0 ok, 1 failed, 2 the configuration or the command line is wrong, 3 an extra or a model is missing,
4 partly done, 5 HOLD in `gate`, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from posttrain import __version__
from posttrain.cli import options, stopping
from posttrain.cli.settings import VerbCommand
from posttrain.cli.speaking import PlainGroup
from posttrain.errors import ConfigError, DiskError, Interrupted, PosttrainError, Problem
from posttrain.language import shown, translate
from posttrain.models.disk import disk_problem
from posttrain.models.memory import few_kernels
from posttrain.models.processor import wait_politely


class Verb(NamedTuple):
    """A verb. target: its code, as `module:name` below posttrain.cli; help: its line in the help."""

    target: str
    help: str


VERBS: dict[str, Verb] = {
    "run": Verb("run:run", "Run a study: models x methods x changes, one exam, one report."),
    "train": Verb("train:train", "Train a model on your examples, as a YAML file says."),
    "trace": Verb("trace:trace", "Say in which layers a model recalls facts, before they are edited."),
    "edit": Verb("edit:edit", "Rewrite facts in a model's weights, list them, take them back."),
    "merge": Verb("merge:merge", "Add, subtract and average models without training."),
    "exam": Verb("exam:exam", "Examine a model before and after a change."),
    "chat": Verb("chat:chat", "Talk to one or several models side by side."),
    "predict": Verb("predict:predict", "Say what a trained classifier, tagger or reader makes of a file's rows."),
    "data": Verb("data:app", "Show, check and make data: loss masks, bad rows, change files."),
    "model": Verb("model:app", "Show, convert, export or verify a model."),
    "list": Verb("list:list_kinds", "List what each registry holds, and the schema of each file."),
    "gate": Verb("gate:gate", "Say SHIP or HOLD of a model that was examined, for CI."),
    "report": Verb("report:report", "Write the report of a finished run again."),
    "doctor": Verb("doctor:doctor", "Say what is installed and what this machine can do, for bug reports."),
}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"posttrain {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but errors.")] = False,
    language: Annotated[
        str | None, typer.Option("--language", metavar="en|zh-TW", help="In which language you are spoken to.")
    ] = None,
) -> None:
    """Change what a language model says after release, and prove what the change did."""


def _not_imported() -> None:
    raise AssertionError("a verb that was not asked for has no code")  # pragma: no cover


def _wanted(arguments: Sequence[str]) -> str | None:
    """Return the verb of the command line, or of the line that a shell wants to complete; None without a verb."""
    words = list(arguments)
    if "_POSTTRAIN_COMPLETE" in os.environ:
        line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
        words = line.split()[1:]
    return next((word for word in words if not word.startswith("-")), None)


def build_app(verb: str | None) -> typer.Typer:
    """Build the application: it names every verb but imports only `verb`."""
    app = typer.Typer(cls=PlainGroup, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP)
    app.callback(epilog="Start with: posttrain run examples/superlative.yaml")(_root)
    for name, (target, line) in VERBS.items():
        found: Any = _not_imported
        if name == verb:
            module, _, attribute = target.partition(":")
            found = importlib.import_module(f"posttrain.cli.{module}").__dict__[attribute]
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, help=line, epilog=options.EVERYWHERE, context_settings=HELP)
        else:
            command: Callable[..., Any] = found
            app.command(
                name,
                cls=VerbCommand,
                short_help=line,
                help=None if name == verb else line,
                epilog=options.EVERYWHERE,
                context_settings=HELP,
            )(command)
    return app


def _os_mend(error: OSError) -> str:
    """Return advice about an error of the operating system."""
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "let this user read and write there, or choose another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, or choose another place; the same command goes on where it stopped"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file stands where a folder is needed: choose another place"
    return "--debug shows where"


def _check_encoding(words: Sequence[str]) -> None:
    """Raise ConfigError for a name with bytes that are not UTF-8: a run's notes and --json cannot hold such a name."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(Problem(ascii(word), "these bytes are not UTF-8", "rename the file or folder")) from error


HELP = {"help_option_names": ["--help", "-h"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. An error is printed as a message, without a traceback."""
    wait_politely()  # torch reads this when it is imported, which is later
    few_kernels()
    with stopping.unwinding():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> int:
    try:
        words = options.take_global(arguments)
        _check_encoding(words)
        build_app(_wanted(words))(args=words, prog_name="posttrain")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code == Interrupted.exit_code:  # typer exits so on KeyboardInterrupt
            return _told(stopping.interrupted())
        if code:
            options.emit_failure(code, _usage_problem(stop))
        return code
    except KeyboardInterrupt:
        return _told(stopping.interrupted())
    except PosttrainError as error:
        return _told(error)
    except OSError as error:
        return _told(PosttrainError(Problem(str(error.filename or ""), error.strerror or str(error), _os_mend(error))))
    except Exception as error:
        if disk := disk_problem(error, Path()):  # a disk error, wrapped in the error class of a library
            return _told(DiskError(disk))
        message = "This should not happen; --debug shows where. A bug report wants `posttrain doctor`."
        code = _told(PosttrainError(f"{type(error).__name__}: {error}"))
        print(translate(message), file=sys.stderr)
        return code
    return 0


def _told(error: PosttrainError) -> int:
    """Print an error and return its exit code. With --debug, raise the handled error again."""
    code = stopping.exit_code() if isinstance(error, Interrupted) else error.exit_code
    options.emit_failure(code, *error.problems)
    if options.debug() and not isinstance(sys.exception(), SystemExit):
        raise
    print(shown(error), file=sys.stderr)
    return code


def _usage_problem(stop: SystemExit) -> Problem:
    """Return typer's error about a command line as a problem, in English."""
    said = stop.__context__
    if isinstance(said, typer.TyperException) and isinstance(said.__cause__, typer.TyperException):
        said = said.__cause__
    cause = said.format_message() if isinstance(said, typer.TyperException) else "it failed; stderr says why"
    return Problem("command line", cause)
