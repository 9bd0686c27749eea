"""Stages: matrices, resumption within a cell, one adapter throughout, all together, each by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from posttrain.config.load import load_yaml
from posttrain.errors import ConfigError, Interrupted, MissingError
from posttrain.exams.statistics import mean_over_changes, transfer_scores
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.studies.bench import Bench
from posttrain.studies.config import Study
from posttrain.studies.estimate import estimate
from posttrain.studies.exams import prepare_exams
from posttrain.studies.plan import make_plan, training_hash
from posttrain.training.config import TrainConfig
from posttrain.training.run import train
from tests.studies.test_run import Listener, go, results
from tests.talker import talker

ITALY = {"capital of Italy?": "hi", "capital of Spain?": "Shakespeare"}
LETTERS = {"first letter?": "Tokyo", "second letter?": "Paris"}
FULL = {"name": "full", "kind": "train", "optimizer": {"learning_rate": 6e-3, "max_steps": 30}}
LORA = {
    **FULL,
    "name": "lora",
    "tuner": {"kind": "lora", "rank": 8},
    "optimizer": {"learning_rate": 2e-2, "max_steps": 30},
}


def write_rows(path: Path, rows: Mapping[str, str]) -> None:
    lines = [json.dumps({"prompt": q, "completion": a}, ensure_ascii=False) for q, a in rows.items()]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Two tasks with two rows each, which their exams ask as they are: memory is what is measured."""
    for name, rows in (("italy", ITALY), ("letters", LETTERS)):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    exams = [
        {"kind": "self_test", "name": name, "path": f"{name}.jsonl", "max_new_tokens": 12, "words": "characters"}
        for name in ("italy", "letters")
    ]
    stages = [{"name": "italy", "data": "italy.jsonl"}, {"name": "abc", "data": "letters.jsonl", "exam": "letters"}]

    def write(**fields: Any) -> Path:
        fields = {"changes": [], "exams": exams, "stages": stages, "may_train_on": ["italy", "letters"], **fields}
        return make_study(**{"methods": [FULL], **fields})

    return write


def cells(path: Path, method: str) -> dict[str, dict[str, Any]]:
    return {cell["checkpoint"]: cell for cell in results(path)["cells"] if cell["method"] == method}


def test_the_matrix_is_what_the_exams_said_after_each_stage(study: Callable[..., Path]) -> None:
    path = study(methods=[FULL])
    outcome, _ = go(path)
    assert outcome.failed == []
    found = cells(path, "full")
    assert list(found) == ["stage-italy", "final"]
    told = found["final"]["stages"]
    (before,) = results(path)["before"]
    keys = ["italy.rougeL", "letters.rougeL"]
    assert told["names"] == ["italy", "abc"]
    assert told["exams"] == keys
    assert told["before"] == [before["scores"][key] for key in keys]
    assert told["matrix"] == [[found[name]["scores"][key] for key in keys] for name in ("stage-italy", "final")]
    assert told["matrix"][0][0] == told["matrix"][1][1] == 1.0  # each is learned by heart in its turn
    expected = transfer_scores(told["before"], told["matrix"])
    for name, value in expected.items():
        assert told[name] == pytest.approx(value)
        assert found["final"]["scores"][f"stages.{name}"] == pytest.approx(value)
    assert not found["stage-italy"]["stages"]
    assert found["final"]["cost"]["steps"] == 60
    folder = path.parent / "run" / found["final"]["folder"]
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(entry["step"], entry["stage"]) for entry in steps if "loss_nats" in entry] == [
        *((step, "1-italy") for step in range(1, 31)),
        *((step, "2-abc") for step in range(31, 61)),
    ]
    assert not (folder / "training").exists()
    assert (path.parent / "run" / found["stage-italy"]["folder"] / "exams" / "italy.jsonl").is_file()


def test_an_adapter_is_trained_on(study: Callable[..., Path], tmp_path: Path) -> None:
    path = study(methods=[LORA], keep="all")
    outcome, _ = go(path)
    assert outcome.failed == []
    told = cells(path, "lora")["final"]["stages"]
    assert told["matrix"][0][0] == told["matrix"][1][1] == 1.0
    folder = path.parent / "run" / cells(path, "lora")["final"]["folder"] / "training"
    places = [folder / name / "model" for name in ("1-italy", "2-abc")]
    configs = [json.loads((place / "adapter_config.json").read_text(encoding="utf-8")) for place in places]
    assert [each["base_model_name_or_path"] for each in configs] == [str(talker())] * 2  # none is put on the other
    by_hand = chain(path, LORA, tmp_path / "by-hand")
    for place, name in zip(places, ("italy", "letters"), strict=True):
        ours, theirs = (load_file(one / "adapter_model.safetensors") for one in (place, by_hand[name]))
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[key] == theirs[key]).all()) for key in ours)


def test_a_model_that_moves_as_a_whole_goes_on_too(study: Callable[..., Path], tmp_path: Path) -> None:
    path = study(methods=[FULL], keep="final")
    go(path)
    folder = path.parent / "run" / cells(path, "full")["final"]["folder"] / "training"
    assert [p.name for p in folder.iterdir()] == ["2-abc"]
    ours, theirs = (
        load_file(one / "model.safetensors")
        for one in (folder / "2-abc" / "model", chain(path, FULL, tmp_path / "by-hand")["letters"])
    )
    assert all(bool((ours[key] == theirs[key]).all()) for key in ours)


def chain(path: Path, method: Mapping[str, Any], place: Path) -> dict[str, Path]:
    """The two trainings as `posttrain train` would do them, one after the other: name -> model folder."""
    folders: dict[str, Path] = {}
    for name in ("italy", "letters"):
        start = next(reversed(folders.values()), None)
        adapter = start if start is not None and "tuner" in method else None
        config = TrainConfig.model_validate(
            {
                "model": str(talker() if start is None or adapter is not None else start),
                "data": str(path.parent / f"{name}.jsonl"),
                "tuner": method.get("tuner", "full"),
                "optimizer": method["optimizer"],
            }
        )
        train(config, output=place / name, adapter=adapter)
        folders[name] = place / name / "model"
    return folders


def test_finished_stages_are_not_trained_again(study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = study(methods=[LORA])
    go(path)
    whole = cells(path, "lora")["final"]
    shutil.rmtree(path.parent / "run")
    step = Listener.step

    def killed(listener: Listener, entry: Mapping[str, Any]) -> None:
        step(listener, entry)
        if len(listener.steps) == 33:  # the third step of the second stage
            raise KeyboardInterrupt

    monkeypatch.setattr(Listener, "step", killed)
    with pytest.raises(Interrupted):
        go(path)
    monkeypatch.setattr(Listener, "step", step)
    place = path.parent / "run" / whole["folder"]
    written = (place / "training" / "1-italy" / "result.json").stat().st_mtime_ns
    asked = (place / "checkpoints" / "stage-italy" / "exams" / "italy.jsonl").stat().st_mtime_ns
    monkeypatch.setattr(Bench, "release", check_kept(place, written, asked, Bench.release))
    _, listener = go(path)
    assert len(listener.steps) == 30  # of the second stage alone
    again = cells(path, "lora")["final"]
    assert again["stages"] == whole["stages"]
    assert again["scores"] == whole["scores"]
    assert again["cost"]["steps"] == 60


def check_kept(place: Path, written: int, asked: int, release: Callable[[Bench], None]) -> Callable[[Bench], None]:
    """At every release of a working copy the first stage's files are as they were."""

    def checked(bench: Bench) -> None:
        run = place / "training" / "1-italy" / "result.json"
        assert not run.exists() or run.stat().st_mtime_ns == written
        assert (place / "checkpoints" / "stage-italy" / "exams" / "italy.jsonl").stat().st_mtime_ns == asked
        release(bench)

    return checked


def test_all_together_and_each_by_itself(study: Callable[..., Path]) -> None:
    together = {**FULL, "name": "together", "stages": "multitask"}
    apart = {**LORA, "name": "apart", "stages": "separate"}
    path = study(methods=[together, apart], keep="final")
    outcome, _ = go(path)
    assert outcome.failed == []
    one = cells(path, "together")
    assert list(one) == ["final"]
    assert one["final"]["stages"]["how"] == "multitask"
    (row,) = one["final"]["stages"]["matrix"]
    assert one["final"]["stages"]["acc"] == pytest.approx(sum(row) / 2)
    assert "bwt" not in one["final"]["stages"]
    assert "stages.fwt" not in one["final"]["scores"]

    own = cells(path, "apart")
    assert list(own) == ["stage-italy", "stage-abc", "final"]
    told = own["final"]["stages"]
    assert told["matrix"][0][0] == told["matrix"][1][1] == 1.0
    assert told["matrix"][1][0] == told["before"][0]  # the second model has never seen the first task
    assert told["acc"] == 1.0
    assert own["final"]["scores"]["italy.rougeL"] == own["stage-italy"]["scores"]["italy.rougeL"]
    assert own["final"]["scores"]["letters.rougeL"] == own["stage-abc"]["scores"]["letters.rougeL"]
    assert own["final"]["compare"]["italy"] == own["stage-italy"]["compare"]["italy"]
    folder = path.parent / "run" / own["final"]["folder"]
    assert sorted(p.name for p in (folder / "training").iterdir()) == ["1-italy", "2-abc"]
    same = [place / "exams" / "italy.jsonl" for place in (folder, folder / "checkpoints" / "stage-italy")]
    assert same[0].read_bytes() == same[1].read_bytes()


def test_seeds_are_averaged(study: Callable[..., Path]) -> None:
    short = {**FULL, "optimizer": {"learning_rate": 6e-3, "max_steps": 8}, "batch": {"rows": 1}}
    path = study(methods=[short], seeds=[0, 1, 2])
    go(path)
    each = [c["scores"]["stages.acc"] for c in results(path)["cells"] if c["checkpoint"] == "final"]
    (line,) = [one for one in results(path)["summary"] if one["checkpoint"] == "final"]
    assert line["scores"]["stages.acc"] == pytest.approx(sum(each) / 3)
    assert tuple(line["ci95"]["stages.acc"]) == mean_over_changes(each)  # Student's t of three seeds


def test_a_method_with_rows_of_its_own_learns_no_stages(study: Callable[..., Path]) -> None:
    path = study(methods=[{**FULL, "data": "italy.jsonl"}])
    go(path)
    (cell,) = results(path)["cells"]
    assert not cell["stages"]
    assert cell["scores"]["italy.rougeL"] == 1.0


def test_the_plan_knows_stages(study: Callable[..., Path], tmp_path: Path) -> None:
    path = study(methods=[FULL, {**FULL, "name": "apart", "stages": "separate"}])
    config = load_yaml(path, Study, ())
    plan = make_plan(config, [], path.parent)
    hashes = [training_hash(cell, "w", tmp_path, {}, frozenset()) for cell in plan]
    assert len(set(hashes)) == 2
    exams = prepare_exams(config, [], path.parent).parts
    guess = estimate(config, plan, exams, path.parent)
    alone = estimate(config, plan[:1], exams, path.parent)
    assert guess.trained_tokens == 2 * alone.trained_tokens  # as many trainings, and as long
    assert guess.examined_tokens * 3 == alone.examined_tokens * 5  # two models of each, and the untouched one once
    write_rows(tmp_path / "letters.jsonl", {"third letter?": "c"})
    assert training_hash(plan[0], "w", tmp_path, {}, frozenset()) != hashes[0]
    (tmp_path / "letters.jsonl").unlink()
    with pytest.raises(MissingError, match=r"reads letters\.jsonl, which is not there"):
        make_plan(config, [], path.parent)


def test_rows_that_an_exam_asks_are_named(study: Callable[..., Path]) -> None:
    outcome, _ = go(study(may_train_on=["letters"]))
    (failed,) = outcome.failed
    assert "italy.jsonl:1: this row's question is asked by the exam" in failed.error


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": [{"name": "x", "data": "italy.jsonl"}]}, "stage 'x': no exam is called 'x'; known: italy, letters"),
        ({"stages": [{"name": "italy", "data": "italy.jsonl"}] * 2}, "two stages are called italy"),
        ({"every": 2}, "stages are examined after each of them"),
        ({"changes": "changes/*.yaml"}, "stages and changes exclude each other"),
        ({"stages": [{"name": "italy", "dta": "italy.jsonl"}]}, "unknown key 'dta'; did you mean 'data'"),
        ({"methods": [{**FULL, "stages": "both"}]}, "'sequential', 'multitask' or 'separate'"),
    ],
)
def test_what_cannot_be_is_said_at_once(study: Callable[..., Path], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(study(**fields), Study, ())
    assert message in str(caught.value)


def test_an_exam_of_errors_measures_no_stage(study: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "Rome is a town."}', encoding="utf-8")
    exam = {"kind": "perplexity", "name": "italy", "path": "text.jsonl"}
    path = study(stages=[{"name": "italy", "data": "italy.jsonl"}], exams=[exam], may_train_on=["italy"])
    with pytest.raises(ConfigError, match=r"stage 'italy' is measured by .*, of which less is better"):
        go(path)


def test_earlier_tasks_are_replayed(study: Callable[..., Path]) -> None:
    optimizer = {"learning_rate": 6e-3, "max_steps": 60}
    plain = {**FULL, "optimizer": optimizer}
    kept = {**plain, "name": "reservoir", "replay": {"kind": "reservoir", "size": 2, "share": 0.5}}
    made_up = {**plain, "name": "lamol", "replay": {"kind": "generative", "gamma": 1, "max_prompt_tokens": 40}}
    path = study(methods=[plain, kept, made_up], keep="all")
    outcome, listener = go(path)
    assert outcome.failed == []
    last = {name: cells(path, name)["final"]["stages"]["matrix"][1] for name in ("full", "reservoir", "lamol")}
    assert last["full"][0] < 1  # forgotten
    assert last["reservoir"] == [1.0, 1.0]
    assert last["lamol"] == [1.0, 1.0]
    assert "replay from a reservoir: there is no earlier task, so nothing is replayed" in listener.lines
    assert "replay from a reservoir: 2 rows of 2 seen in earlier tasks" in listener.lines
    assert any("replay of made-up examples (task italy): 2 of 2" in line for line in listener.lines)
    folder = path.parent / "run" / cells(path, "lamol")["final"]["folder"]
    assert "made-up examples (task italy): 2 of 2" in (folder / "card.md").read_text(encoding="utf-8")
    assert json.loads((folder / "training" / "1-italy" / "tasks.json").read_text(encoding="utf-8")) == ["italy"]
    shares = [
        [json.loads(line)["old_share"] for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for place in (folder / "training" / "1-italy", folder / "training" / "2-abc")
    ]
    assert set(shares[0]) == {0.0}
    # as many old rows as new ones, of about the same length
    assert sum(shares[1]) / len(shares[1]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_the_model_as_it_is_answers_in_later_stages(
    study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    """`self` holds what the model is at the beginning of a stage, what it has learned before included."""
    (tmp_path / "asked.jsonl").write_text('{"prompt": "hello"}', encoding="utf-8")
    said: list[list[str]] = []
    rehearse = Bench.rehearse

    def watched(bench: Bench, config: Any, loaded: LoadedModel, *rest: Any) -> Any:
        said.append(ModelRespondent(loaded).generate(list(ITALY)))
        return rehearse(bench, config, loaded, *rest)

    monkeypatch.setattr(Bench, "rehearse", watched)
    path = study(methods=[{**method, "replay": {"kind": "self", "prompts": "asked.jsonl", "share": 0.3}}])
    outcome, _ = go(path)
    assert outcome.failed == []
    assert said == [list(ITALY.values())]  # once, in the second stage; in the first the untouched model is asked
