"""lm-eval's tasks as an exam of a study: before, at every point, compared, resumed; what they ask is not trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from posttrain.config.load import load_yaml
from posttrain.errors import ConfigError, Interrupted, MissingError
from posttrain.exams.lm_eval import PosttrainLM
from posttrain.exams.sample_log import read_samples
from posttrain.studies.config import Study
from posttrain.studies.exams import prepare_exams
from tests.cli.test_exam_harness import write
from tests.studies.conftest import TRAIN
from tests.studies.test_run import go, results

LETTERS = {"kind": "lm_eval", "tasks": "letters", "include_path": "tasks"}
FULL = {"name": "full", **TRAIN}


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    write(tmp_path, 6)

    def made(**fields: Any) -> Path:
        fields = {"methods": [{"kind": "prompt"}, FULL], "exams": ["change", LETTERS], **fields}
        return make_study(changes="changes/france.yaml", **fields)

    return made


def test_tasks_of_lm_eval_stand_in_a_study_like_any_exam(study: Callable[..., Path]) -> None:
    path = study(checkpoints=[3])
    outcome, listener = go(path)
    assert outcome.failed == []
    data = results(path)
    assert [(c["method"], c["checkpoint"]) for c in data["cells"]] == [
        ("prompt", "final"), ("full", "step-3"), ("full", "final"),
    ]  # fmt: skip
    info = data["exams"]["letters"]
    assert (info["kind"], info["headline"], info["chance"], info["role"]) == ("lm_eval", "acc", 1 / 3, "report")
    assert [(spec["key"], spec["unit"], spec["better"]) for spec in info["scores"]] == [("acc", "share", "more")]
    assert "task:letters|version:2.0|shots:2|template:none" in info["signature"]
    (before,) = data["before"]
    folder = path.parent / "run"
    old = read_samples(folder / before["folder"] / "exams" / "letters.jsonl")
    for cell in data["cells"]:
        new = read_samples(folder / cell["folder"] / "exams" / "letters.jsonl")
        assert cell["scores"]["letters.acc"] == sum(bool(s.correct) for s in new) / 6
        assert cell["compare"]["letters"]["n"] == len(old) == 6
        assert cell["compare"]["letters"]["forgotten"] == sum(
            bool(a.correct and not b.correct) for a, b in zip(old, new, strict=True)
        )
        assert json.loads((folder / cell["folder"] / "lm_eval.json").read_text())["results"]["letters"]["acc,none"]
        assert {"exam_s.letters", "exam_tokens.letters", "reliability"} <= {**cell["cost"], **cell["scores"]}.keys()
    told, plain = (read_samples(folder / c["folder"] / "exams" / "letters.jsonl") for c in (data["cells"][0], before))
    assert [s.extra["responses"] for s in told] != [s.extra["responses"] for s in plain]  # it reads the new fact, too
    assert {(e.checkpoint, e.exam) for e in listener.exams} >= {("before", "letters"), ("step-3", "letters")}
    outcome, _ = go(path)
    assert (outcome.ran, results(path)) == (0, data)


def test_a_killed_exam_of_lm_eval_goes_on(study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = study(methods=[FULL])
    remembered = PosttrainLM._remembered

    def dying(self: PosttrainLM, kind: str, requests: Any, ask: Any) -> list[Any]:
        def stop(kind: str, done: int, total: int) -> None:
            if done == 5:
                raise KeyboardInterrupt

        self.on_progress = stop if "cells" in str(self.kept.path) else None
        return remembered(self, kind, requests, ask)

    with monkeypatch.context() as patched:
        patched.setattr(PosttrainLM, "_remembered", dying)
        with pytest.raises(Interrupted):
            go(path)
    (responses,) = path.parent.glob("run/cells/*/responses.jsonl")
    assert responses.read_bytes().count(b"\n") == 5
    _, listener = go(path)
    assert "5 responses were there" in listener.lines
    killed = results(path)["cells"]
    go(path, restart=True)
    assert [c["scores"] for c in killed] == [c["scores"] for c in results(path)["cells"]]


def test_responses_of_weights_that_were_trained_otherwise_are_thrown_away(study: Callable[..., Path]) -> None:
    go(study(methods=[FULL]))
    other = {**FULL, "optimizer": {"learning_rate": 3e-3, "max_steps": 2}}
    outcome, _ = go(study(methods=[other]))
    assert outcome.failed == []


def test_what_lm_eval_asks_is_not_trained_and_names_must_differ(study: Callable[..., Path], tmp_path: Path) -> None:
    path = study()
    exams = prepare_exams(load_yaml(path, Study), [], tmp_path)
    assert "Which letter has number 3?\nAnswer:" in exams.forbidden
    assert [len(part.items) for part in exams.parts] == [6]
    twice = study(exams=["change", LETTERS, {"kind": "refusal", "name": "letters"}])
    with pytest.raises(ConfigError, match="several exams are called letters"):
        prepare_exams(load_yaml(twice, Study), [], tmp_path)
    lost = study(exams=[{**LETTERS, "include_path": "nowhere"}])
    with pytest.raises(MissingError, match=r"exam 'lm_eval': --include-path: .*nowhere' is no folder here"):
        prepare_exams(load_yaml(lost, Study), [], tmp_path)


def test_an_exam_that_chooses_says_so_and_can_be_asked_alone(study: Callable[..., Path]) -> None:
    path = study(methods=[{"kind": "prompt"}], exams=["change", {**LETTERS, "role": "select", "name": "choice"}])
    go(path)
    data = results(path)
    assert (data["exams"]["choice"]["role"], data["exams"]["change"]["role"]) == ("select", "report")
