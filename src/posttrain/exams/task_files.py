"""`exams/<task>.jsonl`: the samples of a task, appended as they are judged, read again after a kill.

Each line carries the key of its exam (model and template, task and settings), so that samples of another model or of an
edited file are never taken for this exam's. A last line torn by a kill is cut off before anything is appended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from posttrain.errors import ConfigError, Problem
from posttrain.exams.records import rows_in, write_atomically
from posttrain.exams.task import Sample
from posttrain.models.disk import writing

__all__ = ["SampleFile", "read_samples"]


class SampleFile:
    """The samples of one exam; `done` has those that were there, by `Sample.key`."""

    def __init__(self, path: Path, key: str, *, restart: bool = False) -> None:
        """ConfigError when the file holds samples of another exam; with `restart` it is thrown away instead."""
        self.path = path
        self.key = key
        self.done: dict[str, Sample] = {}
        self._order: list[str] = []
        self._open: IO[str] | None = None
        if restart:
            path.unlink(missing_ok=True)
        elif path.exists():
            self._read()

    def _read(self) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        foreign = 0
        for key, sample in _lines(self.path, whole):
            if key == self.key:
                self.done[sample.key] = sample
                self._order.append(sample.key)
            else:
                foreign += 1
        if foreign:
            cause = f"holds {foreign} samples of another exam (another model or template, other questions or settings)"
            raise ConfigError(Problem(str(self.path), cause, "give another --output, or --restart to throw them away"))
        if len(whole) < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def append(self, sample: Sample) -> None:
        """Add one; with the system when this returns, whole or not at all after a kill."""
        if self._open is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open = self.path.open("a", encoding="utf-8", newline="\n")
        with writing(self.path):
            self._open.write(self._line(sample))
            self._open.flush()
        self._order.append(sample.key)

    def rewrite(self, samples: Iterable[Sample]) -> None:
        """All samples in the order of the task, in place of those in the order of finishing."""
        samples = list(samples)
        if self._order != [sample.key for sample in samples]:
            write_atomically(self.path, "".join(map(self._line, samples)))

    def close(self) -> None:
        """No more are appended."""
        if self._open is not None:
            file, self._open = self._open, None
            with suppress(OSError):  # every sample was flushed, or its failure told
                file.close()

    def _line(self, sample: Sample) -> str:
        return json.dumps({"exam": self.key, **sample.to_json()}, ensure_ascii=False) + "\n"


def read_samples(path: Path) -> list[Sample]:
    """The samples of a finished file, whosever they are; for comparisons and reports."""
    return [sample for _, sample in _lines(path, path.read_bytes())]


def _lines(path: Path, raw: bytes) -> list[tuple[str, Sample]]:
    """Exam key and sample of each line; DataError with every line that is neither."""
    return rows_in(path, raw, lambda row: (str(row["exam"]), Sample.from_json(row)), "not a sample of an exam")
