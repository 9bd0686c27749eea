"""results.json: the only schema, writer and reader of exam results.

Studies, `posttrain exam`, `report`, `gate` and the rating app exchange these types. A file carries `"format": 3`. A
file of an earlier version is refused, and the error names the command that writes it again; it is never half read.

    Results                 results.json of a run folder
      ExamInfo              an exam: what its scores mean (`ScoreSpec`), its role, its signature
      Untouched             a model before any training or edit
      Line                  one model x method x change x seed at one point: an `Examined`, with its cell of the study
      Summary               a row of the table: a model and a method at a point, averaged over changes and seeds
      Reference             scores from a file, such as scores of people

JSON has no NaN and no infinities: such a score is left out, and the table shows a dash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from posttrain.config.json_text import parse_json
from posttrain.errors import DataError, MissingError, Problem
from posttrain.exams.compare import Comparison
from posttrain.exams.floor import BesideFloor
from posttrain.exams.score_spec import ScoreSpec, find_spec
from posttrain.exams.statistics import Interval
from posttrain.models.disk import write_whole

__all__ = [
    "CHANGE",
    "FORMAT",
    "CellResult",
    "ExamInfo",
    "Examined",
    "Line",
    "MethodInfo",
    "PointResult",
    "Reference",
    "Results",
    "Role",
    "Summary",
    "Untouched",
    "finite",
    "read_part",
    "read_results",
    "write_json",
    "write_part",
    "write_results",
]

FORMAT = 3
CHANGE = "change"
"""The kind of the change exam; the keys of its scores have no exam name in front."""
FINAL = "final"
"""The name of the point at the end of a cell."""

Role = Literal["report", "select"]
"""report: its scores are the result; select: the exam chose a setting, so its scores are not a result."""


def _numbers(value: Any) -> Any:
    """Return a mapping without its values that are None, NaN or infinite."""
    if not isinstance(value, Mapping):
        return value
    return {key: one for key, one in value.items() if one is not None and not _beyond(one)}


def _beyond(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


Numbers = Annotated[dict[str, float], BeforeValidator(_numbers)]
Intervals = Annotated[dict[str, Interval], BeforeValidator(_numbers)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExamInfo(_Part):
    """One exam, without any scores. headline and the keys of `scores` and `capabilities` do not contain the exam's
    name; chance: the headline that guessing reaches, where it is known.
    """

    name: str
    kind: str = ""
    role: Role = "report"
    headline: str = ""
    signature: str = ""
    capabilities: dict[str, str] = {}
    chance: float | None = None
    scores: tuple[ScoreSpec, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """The text before the exam's score names in the keys of a line's `scores`."""
        return "" if self.kind == CHANGE else f"{self.name}."

    @property
    def key(self) -> str:
        """The headline's key in `scores` of a line."""
        return f"{self.prefix}{self.headline}"

    @property
    def capability(self) -> str:
        """The capability of the headline; empty when it has none."""
        return self.capabilities.get(self.headline, "")

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher headline is better."""
        spec = find_spec(self.headline, self.scores)
        return spec is None or spec.higher_is_better

    def score(self, key: str) -> str | None:
        """Return the score's own name if a line's key belongs to this exam, else None."""
        if self.kind == CHANGE:
            return key if find_spec(key, self.scores) is not None else None
        return key.removeprefix(self.prefix) if key.startswith(self.prefix) else None

    def spec(self, key: str) -> ScoreSpec | None:
        """Return the declaration of one of the exam's scores by its key in a line, or None."""
        name = self.score(key)
        return None if name is None else find_spec(name, self.scores)


@dataclass(frozen=True)
class DriftScore:
    """The part of one score in its group. before: None where the untouched model was not asked; change: None without a
    value before or when that is 0.
    """

    score: str
    before: float | None
    after: float
    difference: float | None = None
    change: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Drift:
    """The relative change of a group of scores, and the scores behind it. change: None where no score has one;
    direction: `better` (a positive change is better) or `none` (neither direction is better).
    """

    change: float | None
    direction: Literal["better", "none"] = "better"
    scores: tuple[DriftScore, ...] = ()

    @property
    def directed(self) -> bool:
        """Whether one direction is better."""
        return self.direction != "none"


class Examined(_Part):
    """What the exams found at one point of a cell.

    checkpoint: name of the point; change: the change that was examined, empty without one; step: optimiser steps so
    far, None where nothing is trained; ci95, n: by score; folder: folder of the samples, relative to the run folder;
    compare: exam -> comparison with the untouched model; drift: capability -> relative change; cost: `exam_s` in all
    and by exam, and tokens by exam; outcomes: locality score -> for each probe, in the order of the file: 1 kept, 0 not
    kept, None not counted.
    """

    checkpoint: str = FINAL
    change: str = ""
    step: int | None = None
    scores: Numbers = {}
    ci95: Intervals = {}
    n: dict[str, int] = {}
    folder: str = ""
    compare: dict[str, Comparison] = {}
    drift: dict[str, Drift] = {}
    notes: tuple[str, ...] = ()
    cost: Numbers = {}
    outcomes: dict[str, tuple[int | None, ...]] = {}


class Line(Examined):
    """One entry of `cells`: a model x method x change x seed at one point.

    weights: where the weights were kept; fingerprint: of the weights and the chat template, where it is known; stages:
    how tasks were learned one after another (`exams/statistics.py`).
    """

    model: str
    method: str
    seed: int = 0
    status: Literal["done", "failed"] = "done"
    error: str = ""
    hash: str = ""
    weights: str = ""
    fingerprint: str = ""
    stages: dict[str, Any] = {}

    @property
    def done(self) -> bool:
        """Whether it has scores."""
        return self.status == "done"


class CellResult(_Part):
    """`result.json` of a cell: its content hash and its lines. A failed cell has one line, which gives the reason."""

    hash: str
    exit_code: int = 0
    lines: tuple[Line, ...] = Field(min_length=1)

    @property
    def first(self) -> Line:
        """The first line, which has the cell's model, method and seed."""
        return self.lines[0]

    @property
    def final(self) -> Line:
        """The line of the end of the cell."""
        return next((line for line in self.lines if line.checkpoint == FINAL), self.lines[-1])

    @property
    def status(self) -> Literal["done", "failed"]:
        """Whether the cell was finished."""
        return self.first.status

    @property
    def error(self) -> str:
        """Why the cell failed; empty when it did not."""
        return self.first.error


class PointResult(_Part):
    """`examined.json` in the folder of a point's samples: the exams of this point are finished.

    hash: the content hash that they belong to; fingerprint: of the weights that were examined; number: how many points
    of the cell were examined before this one.
    """

    hash: str
    fingerprint: str
    number: int
    examined: tuple[Examined, ...]


class Untouched(_Part):
    """The scores of a model before any training or edit. notes: exam -> the notes on its result; key: equal for the
    same model and the same exams.
    """

    model: str
    fingerprint: str = ""
    scores: Numbers = {}
    ci95: Intervals = {}
    n: dict[str, int] = {}
    folder: str = ""
    cost: Numbers = {}
    notes: dict[str, tuple[str, ...]] = {}
    key: str = ""


class Summary(_Part):
    """A model and a method at a point, averaged over changes.

    n: number of probes or samples in all; changes: how many changes have the score; floor: locality score -> comparison
    with the noise floor, empty in the row of the noise floor.
    """

    model: str
    method: str
    checkpoint: str = FINAL
    scores: Numbers = {}
    ci95: Intervals = {}
    n: dict[str, int] = {}
    changes: dict[str, int] = {}
    floor: dict[str, BesideFloor] = {}


class Reference(_Part):
    """A row of scores from a file."""

    name: str
    scores: Numbers


class MethodInfo(_Part):
    """A method's one-line description for the report, and where it starts. start: the method that it starts from;
    steps: the names of a chain's steps.
    """

    kind: str
    summary: str = ""
    start: str = ""
    steps: tuple[str, ...] = ()


class Results(_Part):
    """results.json of a run folder. planned: cells of the whole study; `cells` has fewer while the study runs."""

    format: Literal[3] = 3
    study: str
    title: str = ""
    posttrain: str = ""
    planned: int = 0
    methods: dict[str, MethodInfo] = {}
    exams: dict[str, ExamInfo] = {}
    before: tuple[Untouched, ...] = ()
    cells: tuple[Line, ...] = ()
    summary: tuple[Summary, ...] = ()
    reference: tuple[Reference, ...] = ()

    @property
    def change_exam(self) -> ExamInfo | None:
        """The change exam, or None if it was not taken."""
        return next((exam for exam in self.exams.values() if exam.kind == CHANGE), None)

    def exam_of(self, key: str) -> ExamInfo | None:
        """Return the exam that a score of a line belongs to, by the score's key."""
        named = (exam for exam in self.exams.values() if exam.kind != CHANGE and exam.score(key) is not None)
        return next(named, None) or self.change_exam

    def spec(self, key: str) -> ScoreSpec | None:
        """Return the declaration of a score of a line, or None."""
        exam = self.exam_of(key)
        return None if exam is None else exam.spec(key)


# ---- files -----------------------------------------------------------------------------------------------------------


def finite(value: Any) -> Any:
    """Return plain values with None for NaN and infinities, which JSON cannot represent."""
    if _beyond(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def write_json(path: Path, data: Any) -> None:
    """Write plain values as JSON. After a kill the file is complete or not written."""
    write_whole(path, json.dumps(finite(data), ensure_ascii=False, indent=1) + "\n")


def write_part(path: Path, part: _Part) -> None:
    """Write one of the types of this file. After a kill the file is complete or not written."""
    write_json(path, part.model_dump(mode="json"))


P = TypeVar("P", bound=_Part)


def read_part(path: Path, kind: type[P]) -> P | None:
    """Read what `write_part` wrote; None when the file is missing or cannot be read (it is then made again)."""
    try:
        return kind.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # ValidationError is a ValueError
        return None


def write_results(folder: Path, results: Results) -> None:
    """Write results.json of a run folder."""
    write_part(folder / "results.json", results)


def read_results(folder: Path) -> Results:
    """Read results.json of a run folder. MissingError when there is no such file; DataError when it was not written by
    posttrain, or has another format.
    """
    path = folder / "results.json"
    if not path.is_file():
        what = "no such folder" if not folder.is_dir() else "no results.json in this folder"
        raise MissingError(Problem(str(folder), what, "give the folder that `posttrain run STUDY.yaml` wrote"))
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        mend = "run the study again; finished cells are kept"
        raise DataError(Problem(str(path), f"not valid JSON: {error}", mend)) from error
    if not isinstance(found, dict) or not isinstance(found.get("cells", []), list) or "study" not in found:
        raise DataError(Problem(str(path), "a mapping with 'study' and a list of 'cells' is expected"))
    theirs = found.get("format")
    if theirs != FORMAT:
        cause = f"of format {theirs}; this version of posttrain reads format {FORMAT}"
        if theirs is None:
            cause = "written by an earlier version of posttrain"
        raise DataError(Problem(str(path), cause, f"make it anew: {_command(found, folder)}"))
    try:
        return Results.model_validate(found)
    except ValidationError as error:
        mend = "run the command that wrote it again"
        wrong = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()[:20]]
        raise DataError(*(Problem(f"{path}: {where}", cause, mend) for where, cause in wrong)) from error


def _command(found: Mapping[str, Any], folder: Path) -> str:
    if found["study"] == "exam":
        return f"posttrain exam MODEL ... --output {folder} --restart"
    return f"posttrain run STUDY.yaml --output {folder} (what has the same inputs is kept)"
