"""Record what the result of a run depends on in addition to its configuration: versions, machine, commit and day.

Versions, machine and commit go into env.json. A chat template that contains the date prints the first day of the run,
also when the run is resumed later. That day is kept in the folder of a training, of a study (for all its cells and
their exams) and of an exam.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain import __version__
from posttrain.errors import Problem, TrainingError
from posttrain.models.disk import write_whole
from posttrain.models.processor import processor
from posttrain.models.template_dates import is_dated, moment_of, stay_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DATE", "environment", "keep_date", "keep_first_day", "stay_at_first_day"]

DATE = "template_date.json"
"""File in the folder of a run that has a template with the date: the moment when the run began."""


def environment() -> dict[str, Any]:
    """Return versions of the libraries that compute, processor or GPU, threads, and commit of the working folder."""
    cuda = torch.cuda.is_available()
    return {
        "posttrain": __version__,
        "python": platform.python_version(),
        "packages": dict(_packages()),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "processor": str(processor()),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "argv": sys.argv,
        "commit": commit(Path.cwd()),
    }


@cache
def _packages() -> Mapping[str, str]:
    """Return the versions of the libraries that compute, which a process has loaded once for all."""
    return {
        name: version(name) for name in ("torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors")
    }


@cache
def commit(folder: Path) -> str | None:
    """Return the git commit of a folder, with `+` if files differ from it; None outside of a repository.

    It is asked for once per process: a study writes it for every cell, and git reads all files of the repository.
    """
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True, text=True, timeout=5, cwd=folder, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() or None


def stay_at_first_day(
    tokenizer: PreTrainedTokenizerBase, output: Path | None, *, resume: bool, say: Callable[[str], None]
) -> None:
    """Make a dated template print the day on which the run in `output` began, before any row is rendered.

    If no run has begun there, the template keeps the day that it prints already, or else gets the present day.
    Templates without a date are not changed.
    """
    if not is_dated(tokenizer):
        return
    began = _began(output / DATE) if output is not None and resume else None
    if began is None:
        if moment_of(tokenizer) is None:
            stay_at(tokenizer, datetime.now())
    elif moment_of(tokenizer) != began:
        stay_at(tokenizer, began)
        if began.date() != datetime.now().date():
            say(f"the chat template prints the date: it stays at {began:%Y-%m-%d}, when this run began")


def keep_first_day(tokenizer: PreTrainedTokenizerBase, folder: Path, *, say: Callable[[str], None]) -> None:
    """Do the same as `stay_at_first_day`, and write the day into the folder, which must exist."""
    stay_at_first_day(tokenizer, folder, resume=True, say=say)
    keep_date(tokenizer, folder)


def keep_date(tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the moment that a dated template prints into the folder, for a resumed run."""
    moment = moment_of(tokenizer)
    if is_dated(tokenizer) and moment is not None:
        write_whole(output / DATE, json.dumps({"began": moment.isoformat()}) + "\n", flush=True)


def _began(path: Path) -> datetime | None:
    if not path.is_file():
        return None
    try:
        return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["began"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            Problem(str(path), "does not say when the run began", "delete it, or start over with --restart")
        ) from error
