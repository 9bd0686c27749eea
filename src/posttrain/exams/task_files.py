"""`exams/<task>.jsonl`: the samples of a task, appended as they are judged, read again after a kill.

Each line carries a key of its own (model and template, settings of the exam, the question as it was asked), so that
samples of another model or of an edited file are never taken for this exam's; and so that they are still its own when
more questions are asked. A last line torn by a kill is cut off before anything is appended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from posttrain.errors import ConfigError, DataError, Problem
from posttrain.exams.records import rows_in, write_atomically
from posttrain.exams.task import Sample
from posttrain.models.disk import writing

__all__ = ["SampleFile", "SampleKey", "read_samples"]


class SampleKey(NamedTuple):
    """Whose answer a sample is (model and template), to which settings of the exam, and to which question."""

    model: str
    settings: str
    question: str

    def __str__(self) -> str:
        return "-".join(self)


WHY = {
    "model": "another model or chat template",
    "settings": "other settings or another file of questions",
    "question": "questions worded otherwise",
    "left out": "questions that are not asked now (such as with a smaller limit)",
    "earlier": "of an earlier version of posttrain",
}
"""How a sample may be another exam's."""


class SampleFile:
    """The samples of one exam; `done` has those that were there, by `Sample.key`."""

    def __init__(
        self, path: Path, keys: Mapping[str, SampleKey], *, restart: bool = False, discard: bool = False
    ) -> None:
        """keys: of every sample that is wanted, by `Sample.key`. ConfigError when the file holds samples of another
        exam; with `restart` it is thrown away instead, with `discard` those samples are.
        """
        self.path = path
        self.keys = keys
        self.done: dict[str, Sample] = {}
        self._order: list[str] = []
        self._open: IO[str] | None = None
        if restart:
            path.unlink(missing_ok=True)
        elif path.exists():
            self._read(discard=discard)

    def _read(self, *, discard: bool) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        foreign: list[str] = []
        try:
            lines = _lines(self.path, whole)
        except DataError:
            if not discard:
                raise
            self.path.unlink()
            return
        for key, sample in lines:
            other = self._difference(key, sample)
            if other is None:
                self.done[sample.key] = sample
                self._order.append(sample.key)
            else:
                foreign.append(other)
        if foreign and not discard:
            what = ", ".join(dict.fromkeys(foreign))
            cause = f"holds {len(foreign)} samples of another exam: {what}"
            raise ConfigError(Problem(str(self.path), cause, "give another --output, or --restart to throw them away"))
        if foreign:
            write_atomically(self.path, "".join(map(self._line, self.done.values())))
        elif len(whole) < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def _difference(self, key: str, sample: Sample) -> str | None:
        """How a sample is another exam's; None where it is of this one."""
        model, settings = next(iter(self.keys.values()))[:2]
        wanted = self.keys.get(sample.key)
        if wanted is not None and key == str(wanted):
            return None
        theirs = key.split("-")
        if len(theirs) != len(SampleKey._fields):
            return WHY["earlier"]
        if theirs[0] != model:
            return WHY["model"]
        if theirs[1] != settings:
            return WHY["settings"]
        return WHY["left out" if wanted is None else "question"]

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
        return json.dumps({"exam": str(self.keys[sample.key]), **sample.to_json()}, ensure_ascii=False) + "\n"


def read_samples(path: Path) -> list[Sample]:
    """The samples of a finished file, whosever they are; for comparisons and reports."""
    return [sample for _, sample in _lines(path, path.read_bytes())]


def _lines(path: Path, raw: bytes) -> list[tuple[str, Sample]]:
    """Exam key and sample of each line; DataError with every line that is neither."""
    return rows_in(path, raw, lambda row: (str(row["exam"]), Sample.from_json(row)), "not a sample of an exam")
