"""Exams beside the change exam: before, at every checkpoint, resumed, compared; what they ask is not trained."""

from __future__ import annotations

import csv
import gc
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.load import load_yaml
from posttrain.data.changes import load_changes
from posttrain.errors import ConfigError, Interrupted, MissingError
from posttrain.exams.compare import compare
from posttrain.exams.running import run_task
from posttrain.exams.sample_log import read_samples
from posttrain.studies.bench import Bench
from posttrain.studies.config import Study
from posttrain.studies.exams import prepare_exams
from tests.studies.conftest import TRAIN
from tests.studies.test_run import go, results
from tests.talker import KNOWN

SELF_TEST = {"kind": "self_test", "name": "known", "path": "known.jsonl", "max_new_tokens": 12, "words": "characters"}
MMLU = {"kind": "mmlu", "path": "choices.csv", "shots": 0}
LORA = {"name": "lora", **TRAIN, "tuner": {"kind": "lora", "rank": 2}}
FULL = {"name": "full", **TRAIN}


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a study whose exams are on the talker's own knowledge."""
    rows = [
        json.dumps({"prompt": q, "completion": a}, ensure_ascii=False) for q, a in KNOWN.items() if "capital" not in q
    ]
    (tmp_path / "known.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with (tmp_path / "choices.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "A", "B", "C", "D", "answer"])
        for number in range(4):
            table.writerow([f"which letter is number {number}?", "a", "b", "c", "d", "ABCD"[number]])

    def write(**fields: Any) -> Path:
        fields = {"changes": "changes/france.yaml", "methods": [FULL], "exams": ["change", SELF_TEST, MMLU], **fields}
        return make_study(**fields)

    return write


class Asked:
    """Which exams were begun, of which checkpoints; `stop` interrupts one after so many samples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[tuple[str, str]] = []
        self.fresh: dict[str, int] = {}
        self.stop: tuple[str, str, int] | None = None
        real = run_task

        def watched(respondent: Any, task: Any, *, samples_path: Path, on_progress: Any, **how: Any) -> Any:
            place = samples_path.parent.parent
            checkpoint = "before" if place.parent.name == "before" else place.name if "step-" in place.name else "final"
            self.begun.append((checkpoint, task.name))

            def tell(progress: Any) -> None:
                on_progress(progress)
                if self.stop == (checkpoint, task.name, progress.done):
                    raise KeyboardInterrupt

            made = real(respondent, task, samples_path=samples_path, on_progress=tell, **how)
            self.fresh[f"{checkpoint}/{task.name}"] = len(made.samples) - made.earlier
            return made

        monkeypatch.setattr("posttrain.exams.exam.run_task", watched)

    def checkpoints(self, exam: str) -> list[str]:
        return [checkpoint for checkpoint, name in self.begun if name == exam]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def names(path: Path) -> list[str]:
    return [cell["checkpoint"] for cell in results(path)["cells"]]


def test_every_saved_checkpoint_takes_all_exams_and_the_untouched_model_once(
    study: Callable[..., Path], asked: Asked
) -> None:
    path = study(every=2, methods=[{"kind": "prompt"}, FULL, LORA])
    outcome, listener = go(path)
    assert outcome.failed == []
    data = results(path)
    assert [(c["method"], c["checkpoint"], c["step"]) for c in data["cells"]] == [
        ("prompt", "final", None),
        *(
            (method, name, step)
            for method in ("full", "lora")
            for name, step in (("step-2", 2), ("step-4", 4), ("final", 6))
        ),
    ]
    # step 6 was saved and examined as such, and is the end: it is asked once
    assert asked.checkpoints("known") == ["before", "final", *["step-2", "step-4", "step-6"] * 2]
    (before,) = data["before"]
    assert before["scores"]["known.rougeL"] == 1.0
    assert before["n"]["mmlu.acc"] == 4
    assert before["cost"]["exam_tokens.mmlu"] > 0
    folder = path.parent / "run"
    assert len(read_samples(folder / before["folder"] / "exams" / "known.jsonl")) == 4
    for cell in data["cells"]:
        samples = read_samples(folder / cell["folder"] / "exams" / "known.jsonl")
        mean = sum(s.scores["rougeL"] for s in samples) / 4
        assert cell["scores"]["known.rougeL"] == pytest.approx(mean)
        assert cell["scores"]["locality.unrelated"] <= 1  # the change exam's keys stay as they were
        assert cell["compare"]["known"]["difference"] == pytest.approx(mean - 1.0)
        assert cell["ci95"]["mmlu.acc"][0] <= cell["scores"]["mmlu.acc"] <= cell["ci95"]["mmlu.acc"][1]
        assert {"exam_s", "exam_s.change", "exam_s.known", "exam_tokens.known", "wall_s"} <= cell["cost"].keys()
        entry = next(e for e in cell["drift"]["can.domains"]["scores"] if e["score"] == "known.rougeL")
        assert entry["change"] == pytest.approx(mean - 1.0)
        assert not (folder / cell["folder"] / "training").exists()
    first = read_samples(folder / before["folder"] / "exams" / "mmlu.jsonl")
    last = read_samples(folder / data["cells"][-1]["folder"] / "exams" / "mmlu.jsonl")
    assert data["cells"][-1]["compare"]["mmlu"] == json.loads(json.dumps(asdict(compare(first, last, headline="acc"))))
    assert [p.name for p in sorted((folder / data["cells"][-1]["folder"]).glob("checkpoints/*"))] == [
        "step-2",
        "step-4",
    ]
    assert data["exams"]["mmlu"]["headline"] == "acc"
    assert data["exams"]["known"]["capabilities"]["rougeL"] == "can.domains"
    assert {"known.rougeL", "mmlu.acc", "reliability"} <= data["summary"][0]["scores"].keys()
    assert {(e.checkpoint, e.exam) for e in listener.exams} >= {
        ("before", "mmlu"),
        ("step-2", "change"),
        ("final", "known"),
    }
    assert any(0 < e.done <= e.total and e.left_s is not None for e in listener.exams)

    asked.begun.clear()
    outcome, _ = go(path)
    assert (outcome.ran, asked.begun) == (0, [])
    assert results(path) == data


def test_checkpoints_at_given_steps(study: Callable[..., Path], asked: Asked) -> None:
    path = study(checkpoints=[1, 5, 99], keep="all", methods=[LORA])
    go(path)
    assert names(path) == ["step-1", "step-5", "final"]
    cell = path.parent / "run" / results(path)["cells"][-1]["folder"]
    assert sorted(p.name for p in (cell / "training" / "checkpoints").iterdir()) == ["step-1", "step-5"]
    assert "steps 99 were not reached: training ended after 6" in (cell / "card.md").read_text(encoding="utf-8")


def test_killed_in_an_exam_nothing_is_redone(study: Callable[..., Path], asked: Asked) -> None:
    path = study(checkpoints=[2, 4])
    asked.stop = ("step-4", "known", 3)
    with pytest.raises(Interrupted):
        go(path)
    assert asked.begun[-1] == ("step-4", "known")
    asked.begun.clear()
    asked.stop = None
    _, listener = go(path)
    assert asked.checkpoints("known") == ["before", "step-4", "final"]  # before: read, not asked
    assert asked.fresh == {
        "before/known": 0,
        "before/mmlu": 0,
        "step-2/known": 4,  # of the first run
        "step-2/mmlu": 4,
        "step-4/known": 1,
        "step-4/mmlu": 4,
        "final/known": 4,
        "final/mmlu": 4,
    }
    assert [entry["step"] for entry in listener.steps] == [5, 6]
    killed = results(path)["cells"]
    whole = study(checkpoints=[2, 4], study="whole")
    go(whole, restart=True)
    for one, other in zip(killed, results(whole)["cells"], strict=True):
        assert one["scores"] == other["scores"]


def test_killed_in_the_last_exam_nothing_is_trained_again(study: Callable[..., Path], asked: Asked) -> None:
    path = study(methods=[LORA])
    asked.stop = ("final", "mmlu", 5)
    with pytest.raises(Interrupted):
        go(path)
    asked.stop = None
    _, listener = go(path)
    assert listener.steps == []
    assert asked.fresh["final/known"] == 0
    assert results(path)["cells"][0]["cost"]["steps"] == 6
    assert not list(path.parent.glob("run/cells/*/training"))


def test_another_exam_trains_again_and_asks_only_its_own_questions(study: Callable[..., Path], asked: Asked) -> None:
    path = study(checkpoints=[3], exams=["change", SELF_TEST])
    go(path)
    first = results(path)["cells"]
    asked.begun.clear()
    asked.fresh.clear()
    path = study(checkpoints=[3])
    _, listener = go(path)
    assert len(listener.steps) == 6  # no weights were kept
    assert asked.fresh == {
        "before/known": 0, "before/mmlu": 4, "step-3/known": 0, "step-3/mmlu": 4, "final/known": 0, "final/mmlu": 4,
    }  # fmt: skip
    for one, other in zip(first, results(path)["cells"], strict=True):
        assert {**other["scores"], **one["scores"]} == other["scores"]


def test_with_weights_kept_another_exam_trains_nothing(study: Callable[..., Path], asked: Asked) -> None:
    path = study(checkpoints=[3], exams=["change", SELF_TEST], keep="all")
    go(path)
    _, listener = go(study(checkpoints=[3], keep="all"))
    assert listener.steps == []
    assert names(path) == ["step-3", "final"]
    assert "mmlu.acc" in results(path)["cells"][0]["scores"]


def test_a_step_whose_weights_are_gone_is_trained_again(study: Callable[..., Path], asked: Asked) -> None:
    path = study(keep="final")
    go(path)
    _, listener = go(study(keep="final", checkpoints=[3]))
    assert "the checkpoint of step 3 is to be examined and is gone: training begins anew" in listener.lines
    assert len(listener.steps) == 6
    assert names(path) == ["step-3", "final"]


def test_two_copies_of_the_weights_at_most(study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = study(checkpoints=[2, 4])
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []
    real, working, load = run_task, Bench.working, Bench.load

    def noted(made: Any) -> Any:
        loaded.append(weakref.ref(made.model))
        return made

    def count(respondent: Any, task: Any, **options: Any) -> Any:
        if sum(model() is not None for model in loaded) > 1:
            gc.collect()  # what only a cycle holds
        alive.append(sum(model() is not None for model in loaded))
        if len(alive) == 6:  # in the exams of step 4: the next start examines it from the disk
            raise KeyboardInterrupt
        return real(respondent, task, **options)

    monkeypatch.setattr(Bench, "working", lambda bench: noted(working(bench)))
    monkeypatch.setattr(Bench, "load", lambda bench, folder: noted(load(bench, folder)))
    monkeypatch.setattr("posttrain.exams.exam.run_task", count)
    with pytest.raises(Interrupted):
        go(path)
    del loaded[:]  # what the interruption's traceback holds
    go(path)
    assert names(path) == ["step-2", "step-4", "final"]
    assert len(loaded) == 2  # step 4 from the disk, then the copy that is trained on
    assert max(alive) == 1  # beside the untouched one


def test_a_study_without_changes(study: Callable[..., Path], tmp_path: Path, asked: Asked) -> None:
    rows = [{"prompt": "capital of Italy?", "completion": "Rome"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    method = {**FULL, "data": "rows.jsonl"}
    path = study(changes=[], exams=[SELF_TEST], methods=[method], seeds=[0, 1])
    go(path)
    data = results(path)
    assert [c["folder"].split("--", 1)[1] for c in data["cells"]] == ["full--s0", "full--s1"]
    assert [c["change"] for c in data["cells"]] == ["", ""]
    (line,) = data["summary"]
    values = [c["scores"]["known.rougeL"] for c in data["cells"]]
    assert line["scores"]["known.rougeL"] == pytest.approx(sum(values) / 2)
    low, high = line["ci95"]["known.rougeL"]  # the bootstrap over two seeds
    assert (low, high) == pytest.approx((min(values), max(values)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"changes": [], "exams": MMLU}, "'changes' is missing: full has nothing to learn without a change"),
        ({"changes": [], "methods": [{**FULL, "data": "known.jsonl"}]}, "'changes' is missing: the exam 'change' asks"),
        (
            {"exams": ["change", SELF_TEST, {**SELF_TEST, "path": "x"}]},
            "two exams are called known; give each a 'name'",
        ),
        ({"exams": ["change", {"kind": "change", "name": "again"}]}, "there is one change exam"),
        ({"exams": [{**SELF_TEST, "name": "locality"}]}, "an exam cannot be called 'locality'"),
        ({"exams": [{**SELF_TEST, "name": "a.b"}]}, "an exam cannot be called 'a.b'"),
        ({"exams": [{**SELF_TEST, "wrds": "latin"}]}, "unknown key 'wrds'; did you mean 'words'?"),
        ({"exams": ["mmul"]}, "unknown exam 'mmul'; did you mean 'mmlu'?"),
        ({"checkpoints": [0]}, "final, {every: 500} or a list of steps"),
        ({"checkpoints": "all"}, "final, {every: 500} or a list of steps"),
        ({"every": 2, "checkpoints": [2]}, "every and checkpoints exclude each other"),
        ({"may_train_on": "knwon"}, "no exam is called 'knwon'; known: known, mmlu"),
    ],
)
def test_what_is_wrong_is_said(study: Callable[..., Path], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(study(**fields), Study)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_wrong_key_of_an_exam_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "study: s\nmodels: m\nchanges: c\nmethods: [{kind: prompt}]\nexams:\n  - change\n  - kind: mmlu\n    shotts: 1\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"s\.yaml:8: unknown key 'shotts'; did you mean 'shots'\?"):
        load_yaml(path, Study)


def prepared(path: Path) -> Any:
    config = load_yaml(path, Study)
    changes = load_changes(config.changes, path.parent) if config.changes else []
    return prepare_exams(config, changes, path.parent, location="s.yaml")


def test_an_exam_whose_file_is_missing_is_found_before_anything_runs(
    study: Callable[..., Path], tmp_path: Path
) -> None:
    path = study(exams=[{**SELF_TEST, "path": "nowhere.jsonl"}, MMLU, {**MMLU, "name": "other", "path": "gone.csv"}])
    with pytest.raises(MissingError) as caught:
        go(path)
    assert len(caught.value.problems) == 2
    with pytest.raises(MissingError, match=r"s\.yaml: exam 'known': .*nowhere\.jsonl"):
        prepared(path)
    (tmp_path / "gone.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"s\.yaml: exam 'other': .*gone\.csv"):
        prepared(path)
    assert not (tmp_path / "run").exists()


def row(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in rows), encoding="utf-8")


def test_what_an_exam_asks_is_not_trained(study: Callable[..., Path], tmp_path: Path) -> None:
    write_rows(
        tmp_path / "talks.jsonl", [row("我迷路了。", "你在哪裡？", "在山上", "別動。"), row("Tell me a joke", "No.")]
    )
    rows = [
        row("Which letter is number 2", "c"),  # mmlu's, in other letters
        row("hello", "hi"),  # known's
        row("我迷路了。", "哪裡？", "在山上", "等我。"),  # the last words of a talk, after other words
        row("我迷路了。", "你在哪裡？", "在山上", "等我。"),  # the same talk
        row("在山上", "好"),  # its last words alone, which anybody might say
        row("tell me a joke!", "Yes."),
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    talks = {"kind": "self_test", "name": "talks", "path": "talks.jsonl"}
    method = {**FULL, "data": "rows.jsonl"}

    def collisions(**fields: Any) -> list[int]:
        path = study(exams=["change", SELF_TEST, MMLU, talks], methods=[method], **fields)
        config = load_yaml(path, Study).methods[0]
        barred = config.barred("france", tmp_path, prepared(path).forbidden)
        return sorted(int(problem.split(":")[1]) for problem in [b.removeprefix(str(tmp_path)) for b in barred])

    assert collisions() == [1, 2, 4, 6]
    assert collisions(may_train_on=["talks"]) == [1, 2]
    assert collisions(may_train_on=["talks", "known", "mmlu"]) == []


def test_a_row_that_an_exam_asks_fails_the_cell_and_names_the_way_out(
    study: Callable[..., Path], tmp_path: Path, asked: Asked
) -> None:
    write_rows(tmp_path / "rows.jsonl", [row("hello", "hi")])
    path = study(methods=[{**FULL, "data": "rows.jsonl"}, {"kind": "prompt"}])
    outcome, _ = go(path)
    assert [r.first.method for r in outcome.failed] == ["full"]
    assert "rows.jsonl:1: this row's question is asked by the exam" in outcome.failed[0].error
    assert "may_train_on names exams" in outcome.failed[0].error
    outcome, _ = go(study(methods=[{**FULL, "data": "rows.jsonl"}, {"kind": "prompt"}], may_train_on="known"))
    assert outcome.failed == []


def test_a_bad_row_fails_its_cells_only(study: Callable[..., Path], tmp_path: Path, asked: Asked) -> None:
    (tmp_path / "rows.jsonl").write_text("{", encoding="utf-8")
    outcome, listener = go(study(methods=[{**FULL, "data": "rows.jsonl"}, {"kind": "prompt"}]))
    assert [r.first.method for r in outcome.failed] == ["full"]
    assert listener.ran == ["prompt/france"]


REFERENCE = "name,known.rougeL,mmlu.acc,reliability\nstudents,0.5,0.9,\nteachers,,0.95,1\n"


def test_a_reference_row_stands_beside_the_models(study: Callable[..., Path], tmp_path: Path, asked: Asked) -> None:
    (tmp_path / "human.csv").write_text(REFERENCE, encoding="utf-8")
    path = study(reference="human.csv", methods=[{"kind": "prompt"}])
    go(path)
    assert results(path)["reference"] == [
        {"name": "students", "scores": {"known.rougeL": 0.5, "mmlu.acc": 0.9}},
        {"name": "teachers", "scores": {"mmlu.acc": 0.95, "reliability": 1.0}},
    ]


@pytest.mark.parametrize(
    ("name", "text", "messages"),
    [
        ("a.csv", "mmlu.acc,mmlu.ac\n0.5,0.5\n", [":2: no exam of the study has the score 'mmlu.ac'; did you mean 'mmlu.acc'?"]),
        ("a.csv", "mmlu.acc\nhigh\n", [":2: 'mmlu.acc' is no number: 'high'"]),
        ("a.csv", "name\nx\n", ["holds no scores"]),
        ("a.json", '{"known.rouge1": 0.5, "known.bleu_13a": 20, "mmlu.acc/letters": 1, "known.calibration.ece_em10": 0}', []),
        ("a.json", '[{"name": "x", "scores": {"knwn.rouge1": 1}}, {"name": "y", "scores": {"leek": 1}}]',
         ["entry 1: no exam of the study has the score 'knwn.rouge1'; did you mean 'known.rouge1'?", "did you mean 'leak'?"]),
        ("a.json", "[1]", ["a mapping of score keys to numbers"]),
        ("a.json", "{", ["a.json:1: not valid JSON"]),
    ],
)  # fmt: skip
def test_unknown_keys_of_a_reference_are_errors(
    study: Callable[..., Path], tmp_path: Path, name: str, text: str, messages: list[str]
) -> None:
    from posttrain.studies.reference import read_reference

    (tmp_path / name).write_text(text, encoding="utf-8")
    path = study(reference=name)
    exams = list(prepared(path).info({}).values())
    if not messages:
        assert len(read_reference(tmp_path / name, exams)[0].scores) == 4
        return
    with pytest.raises(ConfigError) as caught:
        read_reference(tmp_path / name, exams)
    assert len(caught.value.problems) == len(messages)
    for message, problem in zip(messages, caught.value.problems, strict=True):
        assert message in str(problem)


def test_an_exam_that_breaks_on_the_untouched_model_fails_the_cells_and_says_where(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("posttrain.exams.exam.run_task", broken)
    path = study()
    outcome, _ = go(path)
    assert [r.status for r in outcome.results] == ["failed"]
    told, _, where = outcome.results[0].error.partition("; traceback in ")
    assert told.endswith("ZeroDivisionError: by nothing")
    assert "Traceback" in Path(where).read_text(encoding="utf-8")
    assert results(path)["before"] == []
