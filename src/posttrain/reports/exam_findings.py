"""What is seen of exams, in words: what fell and what rose for real, what cannot be told, where knowledge falls.

A page of one model says it model by model; with several, each exam has one sentence, in which those that fell, rose or
cannot be told apart stand together.
"""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.exams.results import ExamInfo
from posttrain.reports.exam_page import difference_text, label_of, verdict_kind
from posttrain.reports.examined import Compared
from posttrain.reports.folder import Row, Run
from posttrain.reports.shared import name_list
from posttrain.reports.steps_page import exam_points, falls
from posttrain.reports.texts import Message, say

__all__ = ["exam_sentences"]

KINDS: dict[str, str] = {
    "worse": "seen.exams_fell",
    "better": "seen.exams_rose",
    "some": "seen.exams_some",
    "same": "seen.exams_same",
}

Said = tuple[tuple[Message, ...], bool]
"""The sentences of a paragraph, and whether one of them is bad news."""


def exam_sentences(run: Run) -> Iterator[Said]:
    """Every comparison with the untouched model, then from which step on knowledge falls."""
    rows = [row for row in run.final if row.compare]
    if len(rows) == 1:
        yield from _of_one(run, rows[0])
    else:
        yield from _by_exam(run, rows)
        yield from _falls(run)


def _of_one(run: Run, row: Row) -> Iterator[Said]:
    sorted_out: dict[str, list[Message]] = {kind: [] for kind in KINDS}
    for exam in run.exams:
        compared = row.compare.get(exam.name)
        if compared is not None:
            sorted_out[_kind(compared, exam)].append(_named(f"`{exam.name}`", compared))
    said = [say(key, exams=name_list(sorted_out[kind])) for kind, key in KINDS.items() if sorted_out[kind]]
    bad = bool(sorted_out["worse"])
    for sentences, fell in _falls(run):
        said += sentences
        bad = bad or fell
    if said:
        yield (say("seen.exams", method=f"`{label_of(row, run)}`"), *said), bad


def _by_exam(run: Run, rows: list[Row]) -> Iterator[Said]:
    for exam in run.exams:
        sorted_out: dict[str, list[Message]] = {kind: [] for kind in KINDS}
        for row in rows:
            compared = row.compare.get(exam.name)
            if compared is not None:
                sorted_out[_kind(compared, exam)].append(_named(f"`{label_of(row, run)}`", compared))
        said = [say(key, exams=name_list(sorted_out[kind])) for kind, key in KINDS.items() if sorted_out[kind]]
        if said:
            yield (say("seen.exam_beside", exam=exam.name), *said), bool(sorted_out["worse"])


def _falls(run: Run) -> Iterator[Said]:
    """Methods whose knowledge falls from the same step on share a sentence, and so do those where it does not."""
    shared: dict[tuple[str, str, int], list[str]] = {}
    for version, exam, point in falls(run) if run.stepped else ():
        key = "seen.knowledge_falls" if point else "seen.knowledge_stays"
        step = point.step if point else exam_points(run, exam, version)[-1].step
        label = label_of(run.rows_of(*version)[-1], run)
        shared.setdefault((key, exam.name, step), []).append(f"`{label}`")
    for (key, name, step), labels in shared.items():
        yield (say(key, exam=name, step=step, methods=name_list(labels)),), key == "seen.knowledge_falls"


def _kind(compared: Compared, exam: ExamInfo) -> str:
    return "some" if 0 < compared.agree < compared.cells else verdict_kind(compared, exam)


def _named(name: str, compared: Compared) -> Message:
    difference = difference_text(compared)
    if 0 < compared.agree < compared.cells:
        return say("seen.exam_some", name=name, difference=difference, k=compared.agree, n=compared.cells)
    return say("seen.exam", name=name, difference=difference)
