"""What lm-eval does besides asking is counted, question by question, and leaves nothing behind on its tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_exam_harness import write
from tests.training.tiny import PicoPath

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from posttrain.exams.exam import Sitting
from posttrain.exams.tasks.lm_eval import LmEvalConfig, LmEvalExam
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from posttrain.models.meter import Doing, listening

WATCHED = {"build_all_requests", "construct_requests", "process_results", "aggregation"}


def test_every_question_answer_and_task_is_counted(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.models.meter.OFTEN_S", 0.0)
    write(tmp_path, 12)
    other = (tmp_path / "tasks" / "letters.yaml").read_text(encoding="utf-8").replace("task: letters", "task: more")
    (tmp_path / "tasks" / "more.yaml").write_text(other, encoding="utf-8")
    config = LmEvalConfig(tasks=("letters", "more"), include_path=(str(tmp_path / "tasks"),), limit=5)
    exam = LmEvalExam(config, Path())
    respondent = ModelRespondent(load_model(str(pico_path("llama"))))
    before = {name: set(vars(task)) for name, task in exam.loaded["tasks"].items()}
    for _ in range(2):  # the model, and the one before
        told: list[Doing] = []
        with listening(told.append):
            found = exam.take(Sitting(respondent))
        assert [sample.id for sample in found[1].samples] == [str(i) for i in range(5)]
        for what, unit, total in (
            ("writing out the questions of lm-eval", "questions", 10),
            ("judging the answers", "answers", 10),
            ("computing the scores", "tasks", 2),
        ):
            works = [work for work in told if work.what == what]
            assert [(work.done, work.total, work.unit) for work in works] == [
                (done, total, unit) for done in range(total + 1)
            ]
            assert [work.ends for work in works] == [False] * total + [True]
        ends = [work.what for work in told if work.ends]
        assert ends == ["writing out the questions of lm-eval", "judging the answers", "computing the scores"]
        for name, task in exam.loaded["tasks"].items():
            assert not WATCHED & set(vars(task)) - before[name]
