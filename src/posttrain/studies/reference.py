"""Scores that somebody else reached, read from a file, to stand beside the models: people's, or a paper's.

CSV: one row each, the columns are score keys (`mmlu.acc`, `self_test.rouge-l`), and `name` if there is one. JSON:
`{"mmlu.acc": 0.89}`, `{"name": "human", "scores": {...}}`, or a list of these. An empty cell is no score.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from posttrain.config.change import Change
from posttrain.config.json_text import BadJson, parse_json
from posttrain.config.load import read_text
from posttrain.errors import ConfigError, Problem
from posttrain.exams.results import Reference
from posttrain.exams.task import Task
from posttrain.inference.protocol import Answer, Scored
from posttrain.studies.config import Study
from posttrain.studies.exams import Exams

__all__ = ["known_keys", "read_reference", "reference_of"]

BY_NAME = ("leak", "drift.target_kl", "drift.unrelated_kl", "length.before", "length.after", "length.cut")
DERIVED = ("robust.", "calibration.")
"""Scores that running a task adds to its own."""
DEFAULT_NAME = "human"
TRIED = 25
"""Items that are judged to learn the names of a task's scores."""


def reference_of(study: Study, changes: Sequence[Change], exams: Exams, base: Path) -> list[Reference]:
    """The reference rows of a study; none without a file."""
    if study.reference is None:
        return []
    known = known_keys(changes, exams.tasks, change_exam=exams.change is not None)
    return read_reference(base / study.reference, known, tasks=exams.tasks)


def known_keys(changes: Sequence[Change], tasks: Sequence[Task], *, change_exam: bool) -> list[str]:
    """The keys that a study's scores are known to have, groups and perturbations aside."""
    keys: dict[str, None] = {}
    groups = [group for change in changes for group, _, _ in change.probes()] if change_exam else []
    for group in groups:
        room, _, kind = group.rpartition(".")
        keys[group] = keys[f"likelihood.{kind}"] = None
        if room == "locality":
            keys[f"strict.{kind}"] = None
    keys.update(dict.fromkeys(BY_NAME if groups else ()))
    for task in tasks:
        keys.update(dict.fromkeys(f"{task.name}.{score}" for score in score_names(task)))
    return list(keys)


def score_names(task: Task) -> list[str]:
    """The names of a task's scores, found by judging answers that nobody gave to a few of its items."""
    items = [*{item.group: item for item in task.items}.values(), *task.items[:: max(1, len(task.items) // TRIED)]]
    samples = [
        task.judge(
            item,
            [
                Answer("?", 1, True) if ask.kind == "say" else Scored(-1.0 - i, 1, False)
                for i, ask in enumerate(item.asks)
            ],
        )
        for item in items[: 4 * TRIED]
    ]
    names = [name.partition("/")[0] for name in task.aggregate(samples)]
    return list(dict.fromkeys([task.headline, *names, *task.capabilities]))


def read_reference(path: Path, known: Sequence[str], *, tasks: Sequence[Task] = ()) -> list[Reference]:
    """The rows of a file. ConfigError with every key that no exam of the study has."""
    rows = _csv_rows(path) if path.suffix.lower() in (".csv", ".tsv") else _json_rows(path)
    problems: list[Problem] = []
    found = []
    for where, name, values in rows:
        scores: dict[str, float] = {}
        for key, value in values.items():
            if not _is_known(key, known, tasks):
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


def _is_known(key: str, known: Sequence[str], tasks: Sequence[Task]) -> bool:
    plain = key.partition("/")[0].partition("~")[0]
    owner = next((task for task in tasks if plain.startswith(f"{task.name}.")), None)
    rest = plain.removeprefix(f"{owner.name}.") if owner else ""
    return plain in known or rest.startswith(DERIVED)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _csv_rows(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """(place, name, values) of each row; cells left empty are left out."""
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
