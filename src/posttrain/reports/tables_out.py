"""Plain tables of an exam for papers and spreadsheets: rows are checkpoints, columns scores, in three formats.

Below and above the checkpoints stand the untouched model and the reference rows (people). Every column has one
precision: 3 decimals where no value is above 1, 2 below 1000, else 1. The best model of a column is bold where the
score's better end is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.exams.results import CHANGE, ExamInfo
from posttrain.exams.score_spec import find_spec
from posttrain.exams.scores import SPECS
from posttrain.models.disk import safe_name, write_whole
from posttrain.reports import numbers
from posttrain.reports.folder import Run
from posttrain.reports.formats import to_csv, to_latex
from posttrain.reports.pages import to_html
from posttrain.reports.texts import Words, say
from posttrain.reports.view import Head, Table, number_table

__all__ = ["FORMATS", "direction", "plain_table", "table_names", "write_table", "write_tables"]

FORMATS: tuple[str, ...] = ("html", "csv", "tex")


def direction(exam: ExamInfo | None, score: str) -> bool | None:
    """Return whether higher is better (True) or lower (False); None where neither is known to be."""
    spec = find_spec(score, SPECS if exam is None else exam.scores)
    return None if spec is None or spec.better == "none" else spec.better == "more"


def table_names(run: Run) -> list[str]:
    """Return the exams that have a table: those beyond the change exam, and `change` where it was taken."""
    change = [CHANGE] if any(_exam_of(run, key) is None for row in run.rows for key in row.scores) else []
    return [exam.name for exam in run.exams] + change


def _exam_of(run: Run, key: str) -> ExamInfo | None:
    return next((exam for exam in run.exams if exam.score(key) is not None), None)


def plain_table(run: Run, name: str) -> Table:
    """Return an exam's table, without scores of single groups (`acc/law`) and of disturbed questions (`acc~typos`)."""
    exam = next((each for each in run.exams if each.name == name), None)

    def own(scores: Mapping[str, float]) -> dict[str, float]:
        if exam is not None:
            return {score: v for key, v in scores.items() if (score := exam.score(key)) is not None}
        return {key: v for key, v in scores.items() if _exam_of(run, key) is None}

    known = [own(row.scores) for row in run.rows] + [own(one.scores) for one in run.before]
    names = [score for score in dict.fromkeys(s for each in known for s in each) if not re.search("[/~]", score)]
    if exam is None:
        names = numbers.columns(names)
    many = len({*run.models, *(one.model for one in run.before)}) > 1
    # labels: model, method, checkpoint, step; where nothing was trained, the models are all there is to tell rows apart
    shown = slice(0, 1) if run.alone else slice(0, 4) if many else slice(1, 4)
    heads = [Head(say(key)) for key in ("tables.model", "tables.method", "tables.checkpoint", "tables.step")[shown]]
    rows: list[tuple[tuple[Words, ...], Sequence[float | None], str]] = []

    def add(labels: tuple[Words, ...], scores: Mapping[str, float], kind: str) -> None:
        values = [scores.get(score) for score in names]
        if any(value is not None for value in values):
            rows.append((labels[shown], values, kind))

    for one in run.before:
        add((one.model, say("tables.untouched"), "", "0"), own(one.scores), "untouched")
    for row in (row for version in run.versions for row in run.rows_of(*version)):
        method: Words = say("answers.noise_floor") if row.is_floor else row.method
        # named by the model alone, the floor would have the name of what was examined
        floor = run.alone and row.is_floor
        model = say("tables.floor", floor=method, model=run.before_name or row.model) if floor else row.model
        add((model, method, row.checkpoint, "" if row.step is None else str(row.step)), own(row.scores), "model")
    for person in run.results.reference:
        add(("", person.name, "", ""), own(person.scores), "reference")
    label = f"{run.title}: {name}" + (f" ({exam.signature})" if exam is not None and exam.signature else "")
    return number_table(label, heads, [Head(score) for score in names], rows, [direction(exam, s) for s in names])


def write_tables(run: Run, folder: Path, *, names: Sequence[str] = (), language: str = "en") -> list[Path]:
    """Write tables/<exam>.{html,csv,tex} below a folder, of the named exams or of all, and return their paths."""
    written: list[Path] = []
    for name in names or table_names(run):
        stem = safe_name(name)
        while any(path.stem == stem for path in written):  # two names that are the same once they are made safe
            stem += "-2"
        written += write_table(plain_table(run, name), folder, stem, language=language)
    return written


def write_table(table: Table, folder: Path, stem: str, *, language: str = "en") -> list[Path]:
    """Write tables/<stem>.{html,csv,tex} below a folder and return their paths."""
    texts = {
        "html": to_html(table, language).encode("utf-8", errors="replace"),
        "csv": to_csv(table, language),
        "tex": to_latex(table, language).encode("utf-8", errors="replace"),
    }
    paths = [folder / "tables" / f"{stem}.{suffix}" for suffix in FORMATS]
    for suffix, path in zip(FORMATS, paths, strict=True):
        write_whole(path, texts[suffix])
    return paths
