from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.load import load_yaml
from posttrain.data.changes import load_changes
from posttrain.errors import DiskError, Interrupted, PosttrainError
from posttrain.exams.results import read_results
from posttrain.models.meter import Doing
from posttrain.reports.table import text_table
from posttrain.studies.config import Study
from posttrain.studies.events import Event, ExamEvent, Watcher
from posttrain.studies.methods import prompt as prompt_method
from posttrain.studies.plan import make_plan, select
from posttrain.studies.run import Outcome, run_study
from tests.exams.fakes import Fake, examined


class Listener(Watcher):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[Event] = []
        self.steps: list[Mapping[str, Any]] = []
        self.exams: list[ExamEvent] = []
        self.works: list[Doing] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def ends(self, event: Event) -> None:
        self.events.append(event)

    def step(self, entry: Mapping[str, Any]) -> None:
        self.steps.append(entry)

    def exam(self, event: ExamEvent) -> None:
        self.exams.append(event)

    def doing(self, work: Doing) -> None:
        self.works.append(work)

    @property
    def ran(self) -> list[str]:
        return [f"{e.cell.method.label}/{e.cell.change_name}" for e in self.events]


def go(
    path: Path,
    *sets: str,
    only: Sequence[str] = (),
    changes: int | None = None,
    restart: bool = False,
    listener: Listener | None = None,
    jobs: int = 1,
    on: str = "",
) -> tuple[Outcome, Listener]:
    study = load_yaml(path, Study, sets)
    plan = make_plan(study, load_changes(study.changes, path.parent), path.parent)
    listener = listener or Listener()
    outcome = run_study(
        study,
        plan,
        select(plan, only=only, changes=changes),
        base=path.parent,
        folder=path.parent / "run",
        watcher=listener,
        restart=restart,
        jobs=jobs,
        on=on,
    )
    return outcome, listener


def results(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((path.parent / "run" / "results.json").read_text(encoding="utf-8"))
    return data


def scores(path: Path, method: str) -> dict[str, float]:
    found: dict[str, float] = next(s["scores"] for s in results(path)["summary"] if s["method"] == method)
    return found


def recounted(folder: Path) -> dict[str, float]:
    """Scores of a cell, counted from its samples in the plainest way."""
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    found: defaultdict[str, list[float]] = defaultdict(list)
    tokens = 0
    for sample in samples:
        found[sample["group"]].append(sample["ok"])
        if sample["leak"] is not None:
            found["leak"].append(sample["leak"])
        if sample["group"] == "locality.unrelated":
            found["nats"].append(sample["kl_nats"])
            tokens += sample["kl_tokens"]
    nats = sum(found.pop("nats"))
    return {key: sum(values) / len(values) for key, values in found.items()} | {"drift.unrelated_kl": nats / tokens}


def test_a_study_from_end_to_end_and_nothing_twice(make_study: Callable[..., Path]) -> None:
    path = make_study()
    outcome, listener = go(path)
    assert (outcome.ran, outcome.skipped, outcome.failed) == (8, 0, [])
    assert listener.events[-1].left_s == 0
    assert (listener.events[0].done, listener.events[0].total) == (1, 8)
    data = results(path)
    assert data["study"] == data["title"] == "tiny"
    assert [c["method"] for c in data["cells"][:4]] == ["prompt", "full", "full+self", "lora"]
    assert scores(path, "full")["reliability"] == 1.0
    # what the talker knows stays with its own answers mixed in
    assert scores(path, "full+self")["reliability"] == 1.0
    assert scores(path, "full+self")["drift.unrelated_kl"] < scores(path, "full")["drift.unrelated_kl"]
    # "Capital of France" is asked by the exam, so two of three prompts are replayed
    assert "replay of own answers: 2 conversations (1 asked by the exam left out)" in listener.lines

    for cell in data["cells"]:
        folder = path.parent / "run" / cell["folder"]
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [s["group"] for s in samples] == [
            "reliability",
            "generality.rephrase",
            "locality.same_pattern",
            "locality.unrelated",
            "locality.unrelated",
        ]
        assert "## Scores" in (folder / "card.md").read_text(encoding="utf-8")
        assert "torch" in (folder / "env.json").read_text(encoding="utf-8")
        steps = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(steps) == (0 if cell["method"] == "prompt" else 6)
        assert not (folder / "training").exists()
    assert len(listener.steps) == 6 * 6

    read = read_results(path.parent / "run")
    for line in read.cells:
        assert line.scores == pytest.approx(line.scores | recounted(path.parent / "run" / str(line.folder)), rel=1e-9)
    for mean in read.summary:
        lines = [line for line in read.cells if line.method == mean.method]
        assert len(lines) == 2
        for key in ("reliability", "locality.unrelated", "leak", "drift.unrelated_kl"):
            assert mean.scores[key] == pytest.approx(sum(line.scores[key] for line in lines) / 2, rel=1e-9)

    stamp = (path.parent / "run" / data["cells"][1]["folder"] / "samples.jsonl").stat().st_mtime_ns
    outcome, listener = go(path)
    assert (outcome.ran, outcome.skipped, listener.ran) == (0, 8, [])
    assert (path.parent / "run" / data["cells"][1]["folder"] / "samples.jsonl").stat().st_mtime_ns == stamp
    assert results(path) == data

    outcome, listener = go(path, "methods.full.optimizer.max_steps=2")
    assert listener.ran == ["full/france", "full/japan"]
    outcome, listener = go(path, "methods.full.optimizer.max_steps=2", only=["lora"], changes=1, restart=True)
    assert listener.ran == ["lora/france"]
    assert len(results(path)["cells"]) == 8


def test_the_same_study_gives_the_same_results(make_study: Callable[..., Path]) -> None:
    path = make_study()
    go(path, only=["full+self"])
    first = results(path)["cells"]
    go(path, only=["full+self"], restart=True)
    again = results(path)["cells"]
    assert len(first) == 2
    assert [c["scores"] for c in first] == [c["scores"] for c in again]


def test_a_part_of_a_study_first(make_study: Callable[..., Path]) -> None:
    path = make_study()
    _, listener = go(path, only=["prompt", "full"], changes=1)
    assert listener.ran == ["prompt/france", "full/france"]
    assert results(path)["planned"] == 8
    _, listener = go(path, only=["prompt", "full"])
    assert listener.ran == ["prompt/japan", "full/japan"]
    assert "2 cells were done before and are kept" in listener.lines


def test_a_failing_cell_does_not_stop_the_others(make_study: Callable[..., Path], tmp_path: Path) -> None:
    bad = {"name": "bad", "kind": "train", "data": "rows.jsonl", "optimizer": {"max_steps": 1}}
    path = make_study(methods=[bad, {"kind": "prompt"}])
    row = {"prompt": "Capital of  JAPAN", "completion": "Tokyo"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    outcome, listener = go(path)
    assert listener.ran == ["bad/france", "prompt/france", "bad/japan", "prompt/japan"]
    assert [r.first.method for r in outcome.failed] == ["bad", "bad"]
    cell = results(path)["cells"][0]
    assert cell["status"] == "failed"
    assert "rows.jsonl:1: this row's question is asked by the exam" in cell["error"]
    assert "Traceback" in (path.parent / "run" / cell["folder"] / "error.txt").read_text(encoding="utf-8")
    assert [s["method"] for s in results(path)["summary"]] == ["prompt"]

    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"prompt": "capital of Italy?"}), encoding="utf-8")
    outcome, listener = go(path)
    assert listener.ran == ["bad/france", "bad/japan"]
    assert not outcome.failed
    assert not (path.parent / "run" / cell["folder"] / "error.txt").exists()


def test_an_unexpected_failure_says_where_its_traceback_is(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_study()

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("posttrain.exams.change.run_task", broken)
    outcome, _ = go(path, only=["prompt"], changes=1)
    told, _, where = outcome.results[0].error.partition("; the traceback is in ")
    assert told == "ZeroDivisionError: by nothing"
    assert "Traceback" in Path(where).read_text(encoding="utf-8")


def test_a_model_that_cannot_be_loaded_fails_its_cells_only(
    make_study: Callable[..., Path], pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pico_path("llama"), broken)
    (broken / "model.safetensors").unlink()
    path = make_study()
    models = json.dumps([str(broken), load_yaml(path, Study).models[0]])
    outcome, _ = go(path, f"models={models}", only=["prompt"])
    assert [(r.status, r.exit_code) for r in outcome.results] == [("failed", 3)] * 2 + [("done", 0)] * 2
    assert "model.safetensors is missing" in outcome.results[0].error


def test_ctrl_c_keeps_what_is_done(make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_study()
    count = 0

    def stop(*_: Any) -> str:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return "Remember Tokyo."

    monkeypatch.setattr(prompt_method, "wording_of", stop)
    with pytest.raises(Interrupted, match="stopped; 2 of 4 cells are done; run the same command to go on"):
        go(path, only=["prompt", "full"])
    assert [(c["method"], c["change"]) for c in results(path)["cells"]] == [("prompt", "france"), ("full", "france")]
    monkeypatch.undo()
    monkeypatch.setenv("POSTTRAIN_CACHE", str(path.parent / "cache"))
    _, listener = go(path, only=["prompt", "full"])
    assert listener.ran == ["prompt/japan", "full/japan"]


def test_weights_are_kept_as_asked_and_checkpoints_are_examined(make_study: Callable[..., Path]) -> None:
    path = make_study(keep="final", checkpoints={"every": 2})
    go(path, only=["full", "lora"], changes=1)
    cells = results(path)["cells"]
    assert [(c["method"], c["checkpoint"]) for c in cells] == [
        (method, checkpoint) for method in ("full", "lora") for checkpoint in ("step-2", "step-4", "final")
    ]
    full = cells[:3]
    drift = [c["scores"]["drift.unrelated_kl"] for c in full]
    assert drift[0] < drift[1] < drift[2]
    for cell in cells:
        assert (path.parent / "run" / cell["folder"] / "samples.jsonl").is_file()
    weights = path.parent / "run" / full[0]["weights"]
    assert (weights / "model.safetensors").is_file()
    assert not (weights.parent / "checkpoints").exists()
    assert (path.parent / "run" / cells[3]["weights"] / "adapter_model.safetensors").is_file()

    from posttrain.inference.respondents import ModelRespondent
    from posttrain.models.load import load_model

    study = load_yaml(path, Study)
    before = ModelRespondent(load_model(study.models[0]))
    after = ModelRespondent(load_model(str(weights)))
    change = load_changes(study.changes, path.parent)[0]
    assert examined(before, after, change, max_new_tokens=12).scores == pytest.approx(full[2]["scores"])


def test_a_training_that_goes_on_says_from_where(make_study: Callable[..., Path]) -> None:
    """After a kill, nothing but its checkpoints is left of a cell's training."""
    path = make_study(checkpoints={"every": 2})

    class Killed(Listener):
        def step(self, entry: Any) -> None:
            if entry["step"] == 5:
                raise SystemExit

    with pytest.raises(SystemExit):
        go(path, only=["full"], changes=1, listener=Killed())
    _, listener = go(path, only=["full"], changes=1)
    told = f"{Path(results(path)['cells'][-1]['folder']).name}: training goes on after step 4 of 6"
    assert [line for line in listener.lines if "goes on" in line] == [told]
    assert [entry["step"] for entry in listener.steps] == [5, 6]
    _, listener = go(path, only=["full"], changes=1, restart=True)
    assert not any("goes on" in line for line in listener.lines)


def test_one_run_at_a_time(make_study: Callable[..., Path]) -> None:
    import fcntl

    path = make_study()
    (path.parent / "run").mkdir()
    with (path.parent / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PosttrainError, match="another run is working in this folder"):
            go(path)
    outcome, _ = go(path, only=["prompt"], changes=1)
    assert outcome.ran == 1


def test_a_full_disk_stops_the_study_and_keeps_what_is_done(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next cells would find no more room; the same command goes on."""
    from posttrain.studies.cell import CellRun

    path, own, begun = make_study(), CellRun.run, []

    def run(cell: CellRun) -> Any:
        begun.append(cell)
        if len(begun) == 2:
            raise Exception("No space left on device (os error 28)")  # as tokenizers says it
        return own(cell)

    with monkeypatch.context() as patch:
        patch.setattr(CellRun, "run", run)
        with pytest.raises(DiskError, match=r"cells.*: cannot be written: .*what was there before is kept"):
            go(path, only=["prompt"])
    assert len(begun) == 2
    assert [entry["status"] for entry in results(path)["cells"]] == ["done"]
    outcome, _ = go(path, only=["prompt"])
    assert (outcome.skipped, outcome.failed) == (1, [])


def test_a_method_that_touches_the_untouched_model_is_found_out(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.studies.bench import Bench

    monkeypatch.setattr(Bench, "working", lambda bench: bench.loaded)
    with pytest.raises(PosttrainError, match="the untouched model was changed during the study"):
        go(make_study(), only=["full"], changes=1)


def test_the_noise_floor_is_a_row_of_its_own(make_study: Callable[..., Path]) -> None:
    """Once per change, whatever the seeds; every other row says how it stands beside it."""
    path = make_study(noise_floor="auto", seeds=[0, 1], methods=[{"kind": "prompt"}])
    outcome, listener = go(path, only=["prompt"])
    assert outcome.failed == []
    assert listener.ran.count("noise floor/france") == listener.ran.count("noise floor/japan") == 1
    results = json.loads((path.parent / "run" / "results.json").read_text(encoding="utf-8"))
    rows = {line["method"]: line for line in results["summary"]}
    assert rows["noise floor"]["floor"] == {}
    assert rows["noise floor"]["scores"]["locality.unrelated"] == 1.0  # an overtrained model does not mind bfloat16
    beside = rows["prompt"]["floor"]["locality.unrelated"]
    assert (beside["n"], beside["floor"]) == (8, 1.0)  # two changes of two probes, two seeds
    again, _ = go(path)
    assert again.ran == 0


def test_a_judge_is_asked(make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def opening(name: str, *, offline: bool) -> Fake:
        opened.append(name)
        return Fake("judge", defaultdict(lambda: "No."))

    monkeypatch.setattr("posttrain.studies.examine.open_respondent", opening)
    path = make_study(exams=[{"kind": "change", "judge": "api:wise@http://localhost:1"}], methods=[{"kind": "prompt"}])
    outcome, _ = go(path)
    assert outcome.failed == []
    assert opened == ["api:wise@http://localhost:1"]  # once for all cells
    for one in (path.parent / "run" / "cells").glob("*/samples.jsonl"):
        for sample in map(json.loads, one.read_text(encoding="utf-8").splitlines()):
            local = sample["group"].startswith("locality.")
            assert sample["judged"] == ((sample["before"] == sample["after"]) if local else None)
    results = json.loads((path.parent / "run" / "results.json").read_text(encoding="utf-8"))
    assert "judge.agreement" in results["summary"][0]["scores"]


def test_replay_and_penalties_of_a_cell_are_no_silence(make_study: Callable[..., Path]) -> None:
    """What is told by the trainings of a study reaches the study's watcher, and steps know how many there are."""
    train = {"kind": "train", "tuner": "full", "optimizer": {"max_steps": 2, "learning_rate": "find"}}
    replay = {"kind": "self", "prompts": "prompts.jsonl", "share": 0.7}
    path = make_study(changes="changes/france.yaml", methods=[{**train, "replay": replay, "penalty": {"kind": "ewc"}}])
    _, listener = go(path)
    begun = [work.what for work in listener.works if work.begins]
    assert begun[:3] == [
        "answering prompts for replay",
        "answering prompts for replay",  # the own answers on which the penalty measures
        "measuring Fisher information",
    ]
    assert "searching the learning rate" in begun
    assert "asking the model before the change" in begun
    assert [(step["step"], step["steps"]) for step in listener.steps] == [(1, 2), (2, 2)]


def test_ctrl_c_while_replay_is_made_says_what_is_kept(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_study(changes="changes/france.yaml")
    doing = Listener.doing

    def interrupting(listener: Listener, work: Doing) -> None:
        doing(listener, work)
        if work.what == "answering prompts for replay":
            raise KeyboardInterrupt

    monkeypatch.setattr(Listener, "doing", interrupting)
    with pytest.raises(Interrupted) as caught:
        go(path)
    first, second = caught.value.problems
    assert str(first).startswith("stopped while answering prompts for replay (0 of 3 prompts); nothing of it is kept")
    assert str(second) == "stopped; 2 of 4 cells are done; run the same command to go on"
    monkeypatch.setattr(Listener, "doing", doing)
    outcome, listener = go(path)
    assert listener.ran == ["full+self/france", "lora/france"]
    assert len(outcome.failed) == 0


def test_a_word_to_keep_that_the_model_does_not_say_is_named_once(make_study: Callable[..., Path]) -> None:
    path = make_study(methods=[{"kind": "prompt"}], seeds=[0, 1])
    change = path.parent / "changes" / "france.yaml"
    wrong = '"who wrote Hamlet?"', '{prompt: "who wrote Hamlet?", keeps: [Tolstoy]}'
    change.write_text(change.read_text(encoding="utf-8").replace(*wrong), encoding="utf-8")
    outcome, listener = go(path)
    assert outcome.failed == []
    told = [line for line in listener.lines if "Tolstoy" in line]
    assert told == ["change france: 'Tolstoy' is not in the answer before: check `keeps`"]
    assert "unrelated 1 of 4 (`keeps` has words" in text_table(
        read_results(path.parent / "run"), 200
    )  # of both changes, each counted once
