"""Translate help and usage errors into the language in use, and remove `<bool>` after switches.

typer builds its help from the texts of the commands, so commands and parameters are translated just before they are
shown. typer's own words ("Usage:", "[default: ...]", "No such option") are in the same catalogue. Choices, names of
options and metavars are not translated, because the user types them.
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
"""Setting of typer.rich_utils -> its English text."""


class UsageError(typer.BadParameter):
    """The error of a command line that cannot be used; its message is translated."""

    def format_message(self) -> str:
        """Return the message as it is, without typer's \"Invalid value\"."""
        return self.message


class _Plain(_Command):
    """Help in the language in use, without a value after a switch."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; give switches an empty metavar."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
                param.metavar = ""
        return params

    def get_usage(self, ctx: Any) -> str:
        """Return the usage line, such as `Usage: posttrain run [OPTIONS] STUDY.yaml`, translated."""
        line: str = super().get_usage(ctx)
        for english in ("Usage:", "[OPTIONS]", "COMMAND [ARGS]..."):
            line = line.replace(english, translate(english), 1)
        return line

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, translated."""
        _titles()
        params = [one for one in self.get_params(ctx) if isinstance(one, TyperOption | TyperArgument)]
        for told in (self, *params):
            told.help = _paragraphs(told.help)
        self.epilog = _paragraphs(self.epilog)
        super().format_help(ctx, formatter)


class PlainCommand(_Plain, TyperCommand):
    """A command with help in the language in use, without a value after a switch."""


class PlainGroup(_Plain, TyperGroup):
    """The same help for a verb with sub-verbs, and for all verbs together."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, translated."""
        for command in self.commands.values():
            command.short_help = _paragraphs(command.short_help)
            command.help = _paragraphs(command.help)
        super().format_help(ctx, formatter)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the command line. Raise UsageError, translated, if it cannot be used."""
        try:
            return super().make_context(*args, **extra)
        except typer.TyperException as error:
            _say_again(error)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb. Raise UsageError, translated, if the verb's command line cannot be used."""
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            _say_again(error)


def _say_again(error: typer.TyperException) -> NoReturn:
    """Raise a usage error of typer again, translated. An error that only asks for the help is raised as it is."""
    if isinstance(error, UsageError) or type(error).__name__ == "NoArgsIsHelpError":
        raise error
    _titles()
    raise UsageError(translate(error.format_message()), ctx=vars(error).get("ctx")) from error


def _titles() -> None:
    """Replace typer's titles by translated ones, and its tables by tables that cut no text. The titles are set in
    English too, because one process may use several languages, one after the other."""
    from typer import rich_utils

    from posttrain.cli.help_table import HelpTable

    ours = {"Table": HelpTable, **{name: translate(english) for name, english in TITLES.items()}}
    for name, value in ours.items():
        setattr(rich_utils, name, value)


def _paragraphs(text: str | None) -> str | None:
    """Return a help text translated: each paragraph is one message. Text after a form feed is left out."""
    if not text:
        return text
    shown = inspect.cleandoc(text.partition("\f")[0]).split("\n\n")
    return "\n\n".join(translate(" ".join(paragraph.split())) for paragraph in shown)
