"""Reference scores, read from a file and shown beside the models: for example those of people or of a paper.

CSV: one row per reference; the columns are score keys (`mmlu.acc`, `self_test.rouge-l`) and, optionally, `name`. JSON:
`{"mmlu.acc": 0.89}`, `{"name": "human", "scores": {...}}`, or a list of these. An empty cell is not a score.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from posttrain.config.json_text import BadJson, parse_json
from posttrain.config.load import read_text
from posttrain.errors import ConfigError, Problem
from posttrain.exams.results import ExamInfo, Reference
from posttrain.studies.config import Study
from posttrain.studies.exams import Exams

__all__ = ["read_reference", "reference_of"]

DEFAULT_NAME = "human"


def reference_of(study: Study, exams: Exams, base: Path) -> list[Reference]:
    """Return the reference rows of a study; an empty list if it has no reference file."""
    if study.reference is None:
        return []
    return read_reference(base / study.reference, list(exams.info({}).values()))


def read_reference(path: Path, exams: Sequence[ExamInfo]) -> list[Reference]:
    """Return the rows of a reference file. exams: those of the study. Raise ConfigError with every key that no exam
    declares and every value that is not a number, or if there are no scores.
    """
    rows = _csv_rows(path) if path.suffix.lower() in (".csv", ".tsv") else _json_rows(path)
    known = [f"{exam.prefix}{spec.key}" for exam in exams for spec in exam.scores]
    problems: list[Problem] = []
    found = []
    for where, name, values in rows:
        scores: dict[str, float] = {}
        for key, value in values.items():
            if all(exam.spec(key) is None for exam in exams):
                close = get_close_matches(key, known, n=1, cutoff=0.5)
                mend = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
                problems.append(Problem(where, f"no exam of the study has the score '{key}'", mend))
            elif (number := _number(value)) is None:
                problems.append(Problem(where, f"'{key}' is no number: {value!r}", "write a number such as 0.85"))
            else:
                scores[key] = number
        found.append(Reference(name=name, scores=scores))
    if not any(row.scores for row in found) and not problems:
        problems.append(Problem(str(path), "holds no scores", "a column per score key, a row per reference"))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _csv_rows(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (location, name, values) of each row, without empty cells."""
    text = io.StringIO(read_text(path), newline="")
    table = csv.DictReader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        lines = [(table.line_num, row) for row in table]
    except csv.Error as error:
        raise ConfigError(Problem(f"{path}:{table.line_num}", f"not valid CSV: {error}", "write it again")) from error
    rows = []
    for number, row in lines:
        values = {(key or "").strip(): value for key, value in row.items() if isinstance(value, str) and value.strip()}
        name = str(values.pop("name", "")).strip() or DEFAULT_NAME
        rows.append((f"{path}:{number}", name, values))
    return rows


def _json_rows(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    try:
        data = parse_json(read_text(path))
    except BadJson as bad:
        line = f":{bad.line}" if bad.line else ""
        raise ConfigError(Problem(f"{path}{line}", bad.cause, bad.mend or "write {score key: number}")) from bad
    rows = []
    for i, row in enumerate(data if isinstance(data, list) else [data], start=1):
        where = f"{path}: entry {i}" if isinstance(data, list) else str(path)
        if not isinstance(row, Mapping) or not isinstance(row.get("scores", {}), Mapping):
            raise ConfigError(Problem(where, "a mapping of score keys to numbers is expected"))
        values = dict(row["scores"]) if "scores" in row else {k: v for k, v in row.items() if k != "name"}
        rows.append((where, str(row.get("name") or DEFAULT_NAME), values))
    return rows
