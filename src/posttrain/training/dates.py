"""The day that a dated chat template prints: the first day of the run, also when the run goes on later.

It is kept in the folder of a training, of a study (for all its cells and their exams) and of an exam.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import Problem, TrainingError
from posttrain.models.disk import write_whole
from posttrain.models.template_dates import is_dated, moment_of, stay_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DATE", "keep_date", "keep_first_day", "stay_at_first_day"]

DATE = "template_date.json"
"""In the folder of a run whose template prints the date: when the run began."""


def stay_at_first_day(
    tokenizer: PreTrainedTokenizerBase, output: Path | None, *, resume: bool, say: Callable[[str], None]
) -> None:
    """Let a dated template print the day on which the run in `output` began, before any row is rendered; where no run
    has begun, the present moment stays. Nothing happens to templates without a date."""
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
    """The same, and write the day down in the folder, which exists."""
    stay_at_first_day(tokenizer, folder, resume=True, say=say)
    keep_date(tokenizer, folder)


def keep_date(tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write down the day, for when the run goes on."""
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
