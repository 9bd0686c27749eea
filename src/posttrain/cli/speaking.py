"""Help and usage errors in the language that is spoken, and without `<bool>` after switches.

typer builds its help from what the commands say, so commands and parameters are translated just before they are shown;
its own words ("Usage:", "[default: ...]", "No such option") are in the same catalogue. Choices, names of options and
metavars stay as they are: they are typed.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from posttrain.language import translate

if TYPE_CHECKING:
    _Command = TyperCommand
else:
    _Command = object


TITLES = {
    "DEFAULT_STRING": "[default: {}]",
    "ENVVAR_STRING": "[env var: {}]",
    "REQUIRED_LONG_STRING": "[required]",
    "ARGUMENTS_PANEL_TITLE": "Arguments",
    "OPTIONS_PANEL_TITLE": "Options",
    "COMMANDS_PANEL_TITLE": "Commands",
    "ERRORS_PANEL_TITLE": "Error",
    "ABORTED_TEXT": "Aborted.",
    "RICH_HELP": "Try [blue]'{command_path} {help_option}'[/] for help.",
}
"""typer.rich_utils' settings -> their English."""


class UsageError(typer.BadParameter):
    """A command line that cannot be used, said in the language that is spoken."""

    def format_message(self) -> str:
        """The message as it is, without typer's \"Invalid value\"."""
        return self.message


class _Plain(_Command):
    """Help in the language spoken, with nothing to be typed after a switch."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, switches with an empty metavar."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
                param.metavar = ""
        return params

    def get_usage(self, ctx: Any) -> str:
        """The usage line, such as `Usage: posttrain run [OPTIONS] STUDY.yaml`."""
        line: str = super().get_usage(ctx)
        for english in ("Usage:", "[OPTIONS]", "COMMAND [ARGS]..."):
            line = line.replace(english, translate(english), 1)
        return line

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        _titles()
        params = [one for one in self.get_params(ctx) if isinstance(one, TyperOption | TyperArgument)]
        for told in (self, *params):
            told.help = _paragraphs(told.help)
        self.epilog = _paragraphs(self.epilog)
        super().format_help(ctx, formatter)


class PlainCommand(_Plain, TyperCommand):
    """A command whose help is in the language spoken and shows nothing to be typed after a switch."""


class PlainGroup(_Plain, TyperGroup):
    """The same for a verb with sub-verbs, and for all verbs together."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        for command in self.commands.values():
            command.short_help = _paragraphs(command.short_help)
            command.help = _paragraphs(command.help)
        super().format_help(ctx, formatter)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the command line; what cannot be used is said in the language spoken."""
        try:
            return super().make_context(*args, **extra)
        except typer.TyperException as error:
            _say_again(error)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; the same for its command line."""
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            _say_again(error)


def _say_again(error: typer.TyperException) -> NoReturn:
    """Raise a usage error of typer in the language spoken; that no argument means help is no error."""
    if isinstance(error, UsageError) or type(error).__name__ == "NoArgsIsHelpError":
        raise error
    _titles()
    raise UsageError(translate(error.format_message()), ctx=vars(error).get("ctx")) from error


def _titles() -> None:
    """typer's own titles; set in English too, so that one process may speak one language after the other.

    And its tables, which would cut what does not fit.
    """
    from typer import rich_utils

    from posttrain.cli.help_table import HelpTable

    ours = {"Table": HelpTable, **{name: translate(english) for name, english in TITLES.items()}}
    for name, value in ours.items():
        setattr(rich_utils, name, value)


def _paragraphs(text: str | None) -> str | None:
    """A help text, each paragraph of it a message on one line; what follows a form feed is not for people."""
    if not text:
        return text
    shown = inspect.cleandoc(text.partition("\f")[0]).split("\n\n")
    return "\n\n".join(translate(" ".join(paragraph.split())) for paragraph in shown)
