"""Sample files: written as answers are judged, and read again after a kill; this module alone writes and reads them.

`exams/<name>.jsonl` holds the `Sample`s of an exam, `samples.jsonl` the `ProbeResult`s of the change exam, each line
with the name of its change. Each line has its own key (models and templates, settings of the exam, the question as it
was asked). So samples of another model or of an edited file are never used for this exam, and samples stay valid when
more questions are asked. A last line that a kill left incomplete is ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from posttrain.config.json_text import parse_json
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.exams.records import Record, Sample
from posttrain.models.disk import append, write_whole

__all__ = [
    "KeptResponses",
    "SampleKey",
    "SampleLog",
    "append_row",
    "cut_torn",
    "read_samples",
    "request_id",
    "rows_in",
    "write_samples",
]

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], T]


class SampleKey(NamedTuple):
    """The key of a sample: the model (with its template), the exam's settings, and the question."""

    model: str
    settings: str
    question: str

    def __str__(self) -> str:
        return "-".join(self)


WRONG = "not a sample of an exam"
WHY = {
    "model": "another model or chat template",
    "settings": "other settings or another file of questions",
    "question": "questions worded otherwise",
    "left out": "questions that are not asked now (such as with a smaller limit)",
    "earlier": "of an earlier version of posttrain",
}
"""Reasons why a sample is of another exam, for messages."""

Keys = Mapping[tuple[str, str], SampleKey]
"""(change, `Record.key`) -> key of every sample that is wanted; the change is empty if there is none."""


class SampleLog(Generic[R]):
    """A file of samples. `done` has the samples that were in it, by change and `Record.key`."""

    def __init__(self, path: Path, keys: Keys, read: Read[R], *, restart: bool = False, discard: bool = False) -> None:
        """Open the file. restart: delete it first; discard: delete samples of another exam. ConfigError for samples
        of another exam, without `discard`."""
        self.path = path
        self.keys = keys
        self.done: dict[tuple[str, str], R] = {}
        if restart:
            path.unlink(missing_ok=True)
        elif path.exists():
            self._read(read, discard=discard)
        self._order = list(self.done)  # the order in the file; a record that was asked again is in it twice

    def _read(self, read: Read[R], *, discard: bool) -> None:
        try:
            rows = rows_in(self.path, lambda row: (str(row["exam"]), str(row.get("change", "")), read(row)), WRONG)
        except DataError:
            if not discard:
                raise
            self.path.unlink()
            return
        found = [(self._difference(key, (change, one.key)), change, one) for key, change, one in rows]
        self.done = {(change, one.key): one for other, change, one in found if other is None}
        foreign = [other for other, _, _ in found if other is not None]
        if foreign and not discard:
            what = ", ".join(dict.fromkeys(foreign))
            cause = f"holds {len(foreign)} samples of another exam: {what}"
            raise ConfigError(Problem(str(self.path), cause, "give another --output, or --restart to throw them away"))
        if foreign:
            self._write(list(self.done))
        else:
            cut_torn(self.path)

    def _difference(self, key: str, name: tuple[str, str]) -> str | None:
        """Return why a sample is of another exam; None if it is of this one."""
        wanted = self.keys.get(name)
        if wanted is not None and key == str(wanted):
            return None
        theirs = key.split("-")
        if len(theirs) != len(SampleKey._fields):
            return WHY["earlier"]
        same = (each for (change, _), each in self.keys.items() if change == name[0])
        model, settings = (wanted or next(same, None) or next(iter(self.keys.values())))[:2]
        if theirs[0] != model:
            return WHY["model"]
        if theirs[1] != settings:
            return WHY["settings"]
        return WHY["left out" if wanted is None else "question"]

    def append(self, record: R, change: str = "") -> None:
        """Add one record. The operating system has it when this returns; after a kill it is complete or absent."""
        self.done[change, record.key] = record
        append_row(self.path, self._row((change, record.key)))
        self._order.append((change, record.key))

    def rewrite(self, names: Sequence[tuple[str, str]]) -> None:
        """Write these samples in this order, in a new file, unless the file has this order already."""
        if self._order != [*names]:
            self._write(names)

    def _write(self, names: Sequence[tuple[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(_line(self._row(name)) for name in names))
        self._order = [*names]

    def _row(self, name: tuple[str, str]) -> dict[str, Any]:
        change = {"change": name[0]} if name[0] else {}
        return {"exam": str(self.keys[name]), **change, **self.done[name].to_json()}


def write_samples(path: Path, samples: Sequence[Record], key: SampleKey) -> None:
    """Write a complete sample file at once, for questions that have no key of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(_line({"exam": str(key), **one.to_json()}) for one in samples))


def read_samples(path: Path, read: Read[Any] = Sample.from_json) -> list[Any]:
    """Return the samples of a file, of any model or exam, for comparisons and reports."""
    return rows_in(path, read, WRONG)


# ---- lines -----------------------------------------------------------------------------------------------------------


def rows_in(path: Path, read: Read[T], wrong: str) -> list[T]:
    """Return every row of a file of JSON lines, except blank lines and a last one that a kill left incomplete.
    DataError, with `wrong` as the cause, for all lines that cannot be read.
    """
    found, problems = [], []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        if not text.strip():
            continue
        try:
            found.append(read(parse_json(text.decode())))
        except (ValueError, KeyError, TypeError):
            problems.append(Problem(f"{path}:{number}", wrong, "delete the line"))
    if problems:
        raise DataError(*problems)
    return found


def cut_torn(path: Path) -> None:
    """Cut off a last line that a kill left incomplete, before more is appended."""
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row. The operating system has it when this returns; after a kill it is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append(path, _line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def request_id(kind: str, arguments: Iterable[Any]) -> str:
    """Return an id that is equal only for the same kind of request with the same arguments."""
    text = json.dumps([kind, *arguments], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class KeptResponses:
    """Responses by request, in a file or, without a path, in memory only. Under torchrun each process appends to its
    own file (`responses-1.jsonl` next to that of the first) and reads all files.
    """

    def __init__(self, path: Path | None, key: str, *, rank: int = 0, discard: bool = False) -> None:
        """Read the files. ConfigError if one holds another model's responses; with `discard` it is deleted instead."""
        self.path = path and (path.with_stem(f"{path.stem}-{rank}") if rank else path)
        self.key = key
        self.found: dict[str, Any] = {}
        if path is not None:
            for each in sorted({path, *path.parent.glob(f"{path.stem}-*{path.suffix}")}):
                self._read(each, own=each == self.path, discard=discard)

    def _read(self, path: Path, *, own: bool, discard: bool) -> None:
        if not path.exists():
            return
        rows = rows_in(path, itemgetter("exam", "request", "response"), "not a response to a request")
        foreign = sum(key != self.key for key, _, _ in rows)
        if foreign and discard:
            path.unlink()
            return
        if foreign:
            cause = f"holds {foreign} responses of another model (other weights, template or limits)"
            raise ConfigError(Problem(str(path), cause, "give another --output, or --restart"))
        self.found |= {request: response for _, request, response in rows}
        if own:
            cut_torn(path)

    def append(self, request: str, response: Any) -> None:
        """Add one response. It is given to the operating system completely when this returns."""
        self.found[request] = response
        if self.path is not None:
            append_row(self.path, {"exam": self.key, "request": request, "response": response})
