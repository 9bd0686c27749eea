"""results.json: the one schema of what exams have found, its only writer and its only reader.

Studies, `posttrain exam`, `report`, `gate` and the rating app exchange these types. A file carries `"format": 3`; what
an earlier version has written is refused with the command that makes it anew, never half understood.

    Results                 results.json of a run folder
      ExamInfo              an exam: what its scores mean (`ScoreSpec`), its role, its signature
      Untouched             a model before anything was done to it
      Line                  one model x method x change x seed at one point: an `Examined` with its place in the study
      Summary               a row of the table: a model and a method at a point, averaged over changes and seeds
      Reference             scores from a file, such as people's

NaN and infinities are no JSON: a score that is none is left out, and the table shows a dash.
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
"""The kind of the change exam, whose scores stand without its name."""
FINAL = "final"
"""What the end of a cell is called."""

Role = Literal["report", "select"]
"""report: its scores are the result; select: it has chosen a setting, so that its scores are none."""


def _numbers(value: Any) -> Any:
    """A mapping without what is no number."""
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
    """One exam, apart from what anybody scored in it. headline and the keys of `scores` and `capabilities` are without
    the exam's name; chance: the headline of guessing, where it is known.
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
        """What stands before its scores in `scores` of a line."""
        return "" if self.kind == CHANGE else f"{self.name}."

    @property
    def key(self) -> str:
        """The headline's key in `scores` of a line."""
        return f"{self.prefix}{self.headline}"

    @property
    def capability(self) -> str:
        """The group of capabilities that the headline belongs to; empty when it is in none."""
        return self.capabilities.get(self.headline, "")

    @property
    def higher_is_better(self) -> bool:
        """Of the headline."""
        spec = find_spec(self.headline, self.scores)
        return spec is None or spec.higher_is_better

    def score(self, key: str) -> str | None:
        """The score's own name when a key of a line belongs to this exam, else None."""
        if self.kind == CHANGE:
            return key if find_spec(key, self.scores) is not None else None
        return key.removeprefix(self.prefix) if key.startswith(self.prefix) else None

    def spec(self, key: str) -> ScoreSpec | None:
        """The declaration of one of its scores, by its key in a line."""
        name = self.score(key)
        return None if name is None else find_spec(name, self.scores)


@dataclass(frozen=True)
class DriftScore:
    """A score's part in its group. before: None where it was not asked; change: None without one or with 0 before."""

    score: str
    before: float | None
    after: float
    difference: float | None = None
    change: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Drift:
    """The relative change of a group with the scores behind it. change: None where no score has one; direction:
    `better` (positive is better), `none` (a change is only a change).
    """

    change: float | None
    direction: Literal["better", "none"] = "better"
    scores: tuple[DriftScore, ...] = ()

    @property
    def directed(self) -> bool:
        """Whether more is better or worse."""
        return self.direction != "none"


class Examined(_Part):
    """What the exams found at one point of a cell; ci95 and n by score; folder: where its samples are, below the run.

    change: the change that was examined, empty without one; step: optimiser steps so far, None where nothing is
    trained; compare: exam -> comparison with the untouched model; drift: capability -> relative change; cost: `exam_s`
    and by exam, tokens by exam; outcomes: locality score -> of each probe in the file's order: 1 kept, 0 not, None not
    counted.
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
    """One entry of `cells`: a model x method x change x seed at one point. weights: where they were kept; fingerprint:
    of the weights and template, where it is known; stages: how tasks were learned one after another
    (`exams/statistics.py`).
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
    """`result.json` of a cell: its content hash and its lines; a failed one has one line that says why."""

    hash: str
    exit_code: int = 0
    lines: tuple[Line, ...] = Field(min_length=1)

    @property
    def first(self) -> Line:
        """The cell itself: its model, method and seed."""
        return self.lines[0]

    @property
    def final(self) -> Line:
        """The line of its end."""
        return next((line for line in self.lines if line.checkpoint == FINAL), self.lines[-1])

    @property
    def status(self) -> Literal["done", "failed"]:
        """Whether it was finished."""
        return self.first.status

    @property
    def error(self) -> str:
        """Why it was not."""
        return self.first.error


class PointResult(_Part):
    """`examined.json` beside the samples of a point: its exams are over, under which content hash and for which weights
    (fingerprint); number: how many of the cell's points were examined before it.
    """

    hash: str
    fingerprint: str
    number: int
    examined: tuple[Examined, ...]


class Untouched(_Part):
    """A model on the exams before anything was done to it; notes: exam -> what there is to say, whoever takes it; key:
    the same for the same model and the same exams.
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
    """A model and a method at a point, averaged over changes; n: probes or samples in all; changes: how many changes
    have the score; floor: locality score -> comparison with the noise floor, empty in the floor's own row.
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
    """What a method says of itself. start: the method that it starts from; steps: the names of a chain's steps."""

    kind: str
    summary: str = ""
    start: str = ""
    steps: tuple[str, ...] = ()


class Results(_Part):
    """results.json of a run folder. planned: cells of the whole study; more than there are while it runs."""

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
        """The change exam, where it was taken."""
        return next((exam for exam in self.exams.values() if exam.kind == CHANGE), None)

    def exam_of(self, key: str) -> ExamInfo | None:
        """The exam that a score of a line belongs to."""
        named = (exam for exam in self.exams.values() if exam.kind != CHANGE and exam.score(key) is not None)
        return next(named, None) or self.change_exam

    def spec(self, key: str) -> ScoreSpec | None:
        """The declaration of a score of a line."""
        exam = self.exam_of(key)
        return None if exam is None else exam.spec(key)


# ---- files -----------------------------------------------------------------------------------------------------------


def finite(value: Any) -> Any:
    """Plain values with NaN and infinities as None, which JSON can say."""
    if _beyond(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def write_json(path: Path, data: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_whole(path, json.dumps(finite(data), ensure_ascii=False, indent=1) + "\n")


def write_part(path: Path, part: _Part) -> None:
    """Write one of the types of this file, whole or not at all."""
    write_json(path, part.model_dump(mode="json"))


P = TypeVar("P", bound=_Part)


def read_part(path: Path, kind: type[P]) -> P | None:
    """What `write_part` wrote; None where there is none that can be read (it is made again)."""
    try:
        return kind.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # a ValidationError is one
        return None


def write_results(folder: Path, results: Results) -> None:
    """Write results.json of a run folder."""
    write_part(folder / "results.json", results)


def read_results(folder: Path) -> Results:
    """Read results.json of a run folder.

    MissingError without one; DataError when it is not ours, or of a version that wrote another format.
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
        raise DataError(*(Problem(f"{path}: {place}", cause, mend) for place, cause in wrong)) from error


def _command(found: Mapping[str, Any], folder: Path) -> str:
    if found["study"] == "exam":
        return f"posttrain exam MODEL ... --output {folder} --restart"
    return f"posttrain run STUDY.yaml --output {folder} (what has the same inputs is kept)"
