"""The errors that posttrain raises on purpose.

    PosttrainError                 exit 1   something failed; the message says what to do
    ├── ConfigError                exit 2   a YAML file, an option or a change file is wrong; all problems at once
    ├── DataError                  exit 1   rows of a data file are wrong; all problems at once
    │   └── TemplateError          exit 1   a chat template cannot be used as asked, or is not the one trained with
    ├── MissingError               exit 3   an extra, a model or a file that is needed is missing
    ├── DiskError                  exit 1   the disk is full; what was there before is kept
    ├── TrainingError              exit 1   training cannot continue (a non-finite loss names the batch's rows)
    ├── PartlyDone                 exit 4   some cells of a study failed, the others are done
    └── Interrupted                exit 130 stopped, after saving; on the command line 143 when SIGTERM stopped a verb

A problem has three parts: its location, its cause (what is wrong), and its mend (how to repair it).
"""

from __future__ import annotations

import re
from shlex import quote
from typing import ClassVar, NamedTuple

__all__ = [
    "ConfigError",
    "DataError",
    "DiskError",
    "Interrupted",
    "MissingError",
    "PartlyDone",
    "PosttrainError",
    "Problem",
    "TemplateError",
    "TrainingError",
    "shell_word",
]

SAFE = re.compile(r"[\w@%+=:,./-]+")
"""Matches words that need no quotes in any shell. Letters of every script are allowed; shlex.quote would quote them."""


def shell_word(text: str) -> str:
    """Return a text as one word of a command line that a message tells people to type, in quotes if necessary."""
    return text if SAFE.fullmatch(text) else quote(text)


class Problem(NamedTuple):
    """One thing that is wrong. location: such as `study.yaml:6` or `rows.jsonl:17`; cause: what is wrong there; mend:
    what to type instead (may be empty)."""

    location: str
    cause: str
    mend: str = ""

    def __str__(self) -> str:
        head = f"{self.location}: {self.cause}" if self.location else self.cause
        return f"{head}; {self.mend}" if self.mend else head


class PosttrainError(Exception):
    """The base class of all errors: a message for people, and the exit code of the command that raises it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: Problem | str) -> None:
        self.problems: tuple[Problem, ...] = tuple(p if isinstance(p, Problem) else Problem("", p) for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class ConfigError(PosttrainError):
    """A configuration is wrong: it has an unknown key, a wrong type, a value out of bounds or unreadable YAML."""

    exit_code = 2


class DataError(PosttrainError):
    """A data file has rows that cannot be used."""


class TemplateError(DataError):
    """A chat template cannot give a loss mask, or differs from the one the weights were trained with."""


class MissingError(PosttrainError):
    """Something that is needed is not installed or does not exist."""

    exit_code = 3


class DiskError(PosttrainError):
    """The disk is full, or cannot be written for another reason."""


class TrainingError(PosttrainError):
    """Training cannot continue."""


class PartlyDone(PosttrainError):
    """Some cells failed; the others are done and saved."""

    exit_code = 4


class Interrupted(PosttrainError):
    """Ctrl-C or SIGTERM stopped the work: it has been saved, or the message says what is kept. terminated: a SIGTERM
    was received since the verb began."""

    exit_code = 130
    terminated: ClassVar[bool] = False
