"""Replay old examples from the user's own file (experience replay).

The rows of the file are mixed into training without changes. If possible, use the data that the model was trained on
before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Conversation
from posttrain.errors import DataError, Problem
from posttrain.inference.encoding import PromptReader
from posttrain.registry import register
from posttrain.retention.selection import (
    ReplayConfig,
    ReplayContext,
    conversations_in,
    only_change_in_braces,
    select,
    short_of,
)

__all__ = ["FileReplayConfig", "file"]


class FileReplayConfig(ReplayConfig):
    """Old examples from a file."""

    kind: Literal["file"] = "file"
    """Rows of a data file."""
    data: DataSource
    """The file: a path, or {path, format, columns}; in a study, {change} in the path becomes the change's name."""
    n: int | None = Field(default=None, gt=0)
    """How many rows are used, from the start; all when left out."""

    @field_validator("data")
    @classmethod
    def _only_change_in_braces(cls, value: DataSource) -> DataSource:
        only_change_in_braces([value.path or ""])
        return value

    def for_change(self, name: str) -> FileReplayConfig:
        """Return this replay with a change's name in the path."""
        if self.data.path is None:
            return self
        data = self.data.model_copy(update={"path": self.data.path.replace("{change}", name)})
        return self.model_copy(update={"data": data})

    def files(self) -> list[str]:
        """Return the path of the data file."""
        return [self.data.path] if self.data.path else []

    def rows(self, base: Path) -> list[Conversation]:
        """Return the file's conversations. Raise DataError for rows that are not conversations."""
        rows, others = conversations_in(read_records(self.data.at(base)).records)
        if others:
            mend = "give `messages` rows"
            raise DataError(*(Problem(one, "replay needs conversations", mend) for one in others[:20]))
        return rows[: self.n]

    def check(self, base: Path, reader: PromptReader, seed: int) -> str:
        return short_of(self.n, len(self.rows(base)))


@register("replay", "file", config=FileReplayConfig)
def file(config: FileReplayConfig, context: ReplayContext) -> list[Conversation]:
    """Return the conversations of the file, without those that the exam asks."""
    rows = config.rows(context.base)
    if short := short_of(config.n, len(rows)):
        context.say(short)
    selection = select(rows, context.forbidden, str(config.data.path or config.data.hub))
    context.say(f"replay from {config.data.path or config.data.hub}: {selection}")
    return selection.conversations
