"""`samples.jsonl` of an exam: appended as probes finish, read again after a kill.

Each line carries the key of its exam (both fingerprints, the change and the settings), so answers of other models or of
an edited change file are never taken for this exam's. A line torn by a kill is cut off before anything is appended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from posttrain.config.change import Change
from posttrain.config.json_text import parse_json
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.exams.change import ProbeResult
from posttrain.exams.matching import MatchMode
from posttrain.models.disk import append, write_whole

__all__ = ["SamplesFile", "exam_key", "rows_in", "write_atomically"]

T = TypeVar("T")


MEASURE = 3
"""Raised when answers are judged otherwise, so that samples judged by older rules are not taken for this exam's."""


def exam_key(
    before_fingerprint: str,
    after_fingerprint: str,
    change: Change,
    *,
    max_new_tokens: int,
    mode: MatchMode,
    judge: str = "",
) -> str:
    """The same only for the same two respondents, change and settings."""
    content = json.dumps(
        [before_fingerprint, after_fingerprint, change.model_dump(mode="json"), max_new_tokens, mode, judge, MEASURE],
        sort_keys=True,
        ensure_ascii=False,
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Line(NamedTuple):
    """One finished probe of one exam."""

    exam: str
    change: str
    result: ProbeResult

    def to_text(self) -> str:
        """One line of the file."""
        row = {"exam": self.exam, "change": self.change, **self.result.to_json()}
        return json.dumps(row, ensure_ascii=False) + "\n"


def rows_in(path: Path, raw: bytes, read: Callable[[dict[str, Any]], T], wrong: str) -> list[T]:
    """The lines of a file that reads `raw`, blank ones left out. DataError with every line that is none: `wrong`."""
    found, problems = [], []
    for number, text in enumerate(raw.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            found.append(read(parse_json(text.decode())))
        except (ValueError, KeyError, TypeError):
            problems.append(Problem(f"{path}:{number}", wrong, "delete the line"))
    if problems:
        raise DataError(*problems)
    return found


class SamplesFile:
    """The samples of one or more exams in one file."""

    def __init__(self, path: Path, exams: Mapping[str, str]) -> None:
        """exams: change name -> exam key. ConfigError when the file holds other exams' samples."""
        self.path = path
        self.exams = dict(exams)
        self.done: dict[str, dict[str, ProbeResult]] = {name: {} for name in exams}
        self._read()

    def _read(self) -> None:
        if not self.path.exists():
            return
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        foreign = 0

        def read(row: dict[str, Any]) -> Line:
            return Line(row["exam"], row["change"], ProbeResult.from_json(row))

        for line in rows_in(self.path, whole, read, "not a sample of an exam"):
            if self.exams.get(line.change) == line.exam:
                self.done[line.change][line.result.key] = line.result
            else:
                foreign += 1
        if foreign:
            cause = f"holds {foreign} samples of another exam (other models, settings, or an edited change file)"
            raise ConfigError(Problem(str(self.path), cause, "give another --output, or delete the file"))
        if len(whole) < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def append(self, change: str, result: ProbeResult) -> None:
        """Add one finished probe; on the disk when this returns to the system, whole or not at all when killed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append(self.path, Line(self.exams[change], change, result).to_text())

    def rewrite(self, samples: Mapping[str, Iterable[ProbeResult]]) -> None:
        """All samples in the order of the change files, in place of those in the order of finishing."""
        lines = [
            Line(self.exams[name], name, result).to_text() for name, results in samples.items() for result in results
        ]
        write_atomically(self.path, "".join(lines))


def write_atomically(path: Path, text: str) -> None:
    """Write beside and rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
