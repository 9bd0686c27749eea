"""What is seen of exams, in words: what fell and what rose for real, what cannot be told, where knowledge falls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from posttrain.reports import numbers
from posttrain.reports.exam_page import label_of, verdict_kind
from posttrain.reports.examined import Compared, ExamInfo
from posttrain.reports.folder import Run
from posttrain.reports.steps_page import exam_points, falls
from posttrain.reports.texts import Message, say

__all__ = ["exam_sentences"]


def exam_sentences(run: Run) -> Iterator[tuple[tuple[Message, ...], bool]]:
    """For each model and method with comparisons: its sentences, and whether one of them is bad news."""
    fallen = list(falls(run)) if run.stepped else []
    for row in run.final:
        sorted_out: dict[str, list[Message]] = {"worse": [], "better": [], "some": [], "same": []}
        for exam in run.exams:
            compared = row.compare.get(exam.name)
            if compared is not None:
                sorted_out[_kind(compared, exam)].append(_named(compared, exam))
        sentences = [
            say(key, exams=_listed(sorted_out[kind]))
            for kind, key in (
                ("worse", "seen.exams_fell"),
                ("better", "seen.exams_rose"),
                ("some", "seen.exams_some"),
                ("same", "seen.exams_same"),
            )
            if sorted_out[kind]
        ]
        bad = bool(sorted_out["worse"])
        for version, exam, point in fallen:
            if version == (row.model, row.method):
                last = exam_points(run, exam, version)[-1].step
                key = "seen.knowledge_falls" if point else "seen.knowledge_stays"
                sentences.append(say(key, exam=exam.name, step=point.step if point else last))
                bad = bad or point is not None
        if sentences:
            yield (say("seen.exams", method=f"`{label_of(row, run)}`"), *sentences), bad


def _kind(compared: Compared, exam: ExamInfo) -> str:
    return "some" if 0 < compared.agree < compared.cells else verdict_kind(compared, exam)


def _named(compared: Compared, exam: ExamInfo) -> Message:
    difference = numbers.signed(compared.difference, numbers.digits((compared.before, compared.after)))
    if 0 < compared.agree < compared.cells:
        return say("seen.exam_some", exam=exam.name, difference=difference, k=compared.agree, n=compared.cells)
    return say("seen.exam", exam=exam.name, difference=difference)


def _listed(names: Sequence[Message]) -> Message:
    listed = names[0]
    for name in names[1:]:
        listed = say("list.two", head=listed, tail=name)
    return listed
