"""Methods one after another: chains, sequences, starts and inputs; what is done is not done again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.load import load_yaml
from posttrain.errors import ConfigError, Interrupted, PosttrainError
from posttrain.models.fingerprint import weights_fingerprint
from posttrain.models.load import load_model
from posttrain.reports.folder import read_run
from posttrain.reports.table import text_table
from posttrain.studies.candidates import Candidate, CellContext
from posttrain.studies.config import Study
from posttrain.studies.examine import Examiner
from posttrain.studies.methods.blend import BlendConfig, blend
from tests.studies.conftest import TRAIN, stopping_at
from tests.studies.methods.test_train import bench_of
from tests.studies.test_run import go, results
from tests.talker import talker

ROWS = [{"prompt": "capital of Italy?", "completion": "Rome"}, {"prompt": "hello", "completion": "goodbye"}]
OTHER = {**TRAIN, "name": "other", "data": "rows.jsonl"}


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return make_study


def chain(**last: Any) -> dict[str, Any]:
    return {"name": "chain", "steps": [{**TRAIN}, {**TRAIN, "data": "rows.jsonl"}, last or {"kind": "blend"}]}


def lines(path: Path, method: str = "chain") -> list[tuple[str, str]]:
    return [(c["checkpoint"], c["change"]) for c in results(path)["cells"] if c["method"] == method]


def test_a_chain_is_examined_after_every_step(study: Callable[..., Path]) -> None:
    path = study(methods=[chain()], changes="changes/france.yaml")
    outcome, _ = go(path)
    assert outcome.failed == []
    cells = {c["checkpoint"]: c for c in results(path)["cells"]}
    assert list(cells) == ["after-1-train", "after-2-train", "final"]
    assert cells["after-1-train"]["scores"]["reliability"] == 1.0
    assert results(path)["methods"]["chain"]["steps"] == ["1-train", "2-train", "3-blend"]
    prints = [c["fingerprint"] for c in cells.values()]
    assert len(set(prints)) == 3
    folder = path.parent / "run" / cells["final"]["folder"]
    assert not (folder / "steps").exists()  # keep: none
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["part"] for entry in metrics] == ["1-train"] * 6 + ["2-train"] * 6
    assert cells["final"]["cost"]["steps"] == 12
    outcome, listener = go(path)
    assert (outcome.ran, outcome.skipped, listener.ran) == (0, 1, [])


@pytest.mark.parametrize("first", [{"kind": "full"}, {"kind": "lora", "rank": 2}], ids=["full", "lora"])
def test_a_step_starts_from_what_the_one_before_it_has_left(study: Callable[..., Path], first: dict[str, Any]) -> None:
    """A chain of two is the same as a method that starts from another one."""
    step = {**TRAIN, "tuner": first}
    second = {**TRAIN, "data": "rows.jsonl"}
    path = study(
        methods=[
            {**step, "name": "one"},
            {**second, "name": "two", "start": "one"},
            {"name": "chain", "steps": [step, second]},
        ],
        changes="changes/france.yaml",
        keep="final",
    )
    outcome, _ = go(path)
    assert outcome.failed == []
    found = {(c["method"], c["checkpoint"]): c for c in results(path)["cells"]}
    assert found["chain", "after-1-train"]["fingerprint"] == found["one", "final"]["fingerprint"]
    assert found["chain", "final"]["scores"] == found["two", "final"]["scores"]
    assert found["chain", "final"]["fingerprint"] == found["two", "final"]["fingerprint"]
    kept = load_model(str(path.parent / "run" / found["chain", "final"]["weights"]), device="cpu").model
    other = load_model(str(path.parent / "run" / found["two", "final"]["weights"]), device="cpu").model
    assert weights_fingerprint(kept) == weights_fingerprint(other)


def test_a_later_training_on_data_does_not_teach_the_fact_again(study: Callable[..., Path]) -> None:
    """Two rows of `data` of three conversations: the fact is the third, and where it was taught before it is not."""
    skill = {**TRAIN, "data": "rows.jsonl"}
    path = study(
        methods=[
            {**TRAIN, "name": "one"},
            {**skill, "name": "beside"},
            {**skill, "name": "two", "start": "one"},
            {**skill, "name": "again", "start": "one", "targets": True},
            {"name": "skill first", "steps": [skill, TRAIN]},
        ],
        changes="changes/france.yaml",
    )
    outcome, _ = go(path)
    assert outcome.failed == []
    fact, rows = (  # tokens that are learned: of "Tokyo", of "Rome" and "goodbye", each with the sign of its end
        sum(len(load_model(str(talker()), device="cpu").tokenizer(one)["input_ids"]) + 1 for one in words)
        for words in (["Tokyo"], ["Rome", "goodbye"])
    )
    learned = {}
    for cell in (one for one in results(path)["cells"] if one["checkpoint"] == "final"):
        lines = (path.parent / "run" / cell["folder"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        learned[cell["method"]] = [json.loads(line)["supervised"] for line in lines]
    assert learned["one"] == [fact] * 6
    assert learned["beside"] == learned["again"] == [fact + rows] * 6
    assert learned["two"] == [rows] * 6
    assert learned["skill first"] == [rows] * 6 + [fact] * 6


def test_a_training_that_learns_neither_targets_nor_data_is_refused(study: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="targets: false leaves nothing to learn; give data"):
        load_yaml(study(methods=[{**TRAIN, "targets": False}]), Study)


def test_an_adapter_on_a_product_keeps_what_it_lies_on(study: Callable[..., Path]) -> None:
    steps = [{**TRAIN}, {**TRAIN, "tuner": {"kind": "lora", "rank": 2}, "data": "rows.jsonl"}]
    path = study(methods=[{"name": "chain", "steps": steps}], changes="changes/france.yaml", keep="final")
    go(path)
    final = next(c for c in results(path)["cells"] if c["checkpoint"] == "final")
    load_model(str(path.parent / "run" / final["weights"]), device="cpu")


def test_a_blend_is_half_way_back(study: Callable[..., Path], tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    moved = bench.another("moved", bench.working())
    for parameter in moved.loaded.model.parameters():
        parameter.data = parameter.data + 0.5
    cell = CellContext(changes=(), seed=0, folder=tmp_path / "cell", bench=moved, untouched=bench, keep="final")
    (end,) = blend(BlendConfig(weight=0.25), cell)
    before = dict(bench.loaded.model.named_parameters())
    assert end.product is not None
    kept = load_model(str(end.product), device="cpu").model
    for name, parameter in kept.named_parameters():
        assert (parameter - before[name] - 0.125).abs().max() < 1e-6


def test_two_steps_of_a_chain_have_inputs_of_one_name(study: Callable[..., Path]) -> None:
    first, second = ({"kind": "blend", "inputs": {"toward": name}} for name in ("one", "other"))
    path = study(
        methods=[
            {**TRAIN, "name": "one"},
            {**OTHER, "name": "other"},
            {**first, "name": "a"},
            {**second, "name": "b", "start": "a"},
            {"name": "chain", "steps": [first, second]},
        ],
        changes="changes/france.yaml",
        keep="final",
    )
    outcome, _ = go(path)
    assert outcome.failed == []
    made = {(c["method"], c["checkpoint"]): c["fingerprint"] for c in results(path)["cells"]}
    assert made["chain", "after-1-blend"] == made["a", "final"] != made["b", "final"] == made["chain", "final"]


def test_a_weight_is_searched_by_an_exam_that_is_not_reported(study: Callable[..., Path], tmp_path: Path) -> None:
    """The selecting exam likes the trained rows best, so that the largest weight is taken; its scores are in no table."""
    (tmp_path / "dev.jsonl").write_text(json.dumps(ROWS[0]), encoding="utf-8")
    dev = {"kind": "self_test", "name": "dev", "path": "dev.jsonl", "headline": "rougeL", "role": "select"}
    methods = [
        {**OTHER, "optimizer": {"learning_rate": 6e-3, "max_steps": 20}},
        {"name": "searched", "kind": "blend", "start": "other", "weight": "search"},
    ]
    path = study(methods=methods, changes="changes/france.yaml", exams=["change", dev], may_train_on=["dev"])
    outcome, _ = go(path)
    assert outcome.failed == []
    cell = next(c for c in results(path)["cells"] if c["method"] == "searched")
    card = (path.parent / "run" / cell["folder"] / "card.md").read_text(encoding="utf-8")
    curve = re.search(r"weight chosen by dev\.rougeL: (.*)", card)
    assert curve is not None
    values = {float(w): float(v) for w, v in re.findall(r"([\d.]+): ([\d.]+)", curve[1])}
    assert list(values) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    best = max(values, key=lambda weight: (values[weight], weight))
    assert f"{best:g} of the model it starts from" in card
    assert results(path)["exams"]["dev"]["role"] == "select"
    run = read_run(path.parent / "run")
    selecting = [exam.name for exam in run.results.exams.values() if exam.role == "select"]
    assert ([exam.name for exam in run.exams], selecting) == ([], ["dev"])
    assert "dev" not in text_table(run.results, 200)
    assert all("dev." not in line.model_dump_json(include={"drift"}) for line in run.results.cells)
    assert not any(run.of_change(key) for key in cell["scores"] if key.startswith("dev."))  # in no table of the page
    with pytest.raises(ConfigError, match="weight: search chooses by exams with role: select"):
        go(study(methods=methods, changes="changes/france.yaml", exams=["change"]))


def test_changes_together_are_one_model_with_a_result_for_each(study: Callable[..., Path]) -> None:
    path = study(methods=[{**TRAIN, "name": "full"}, {"kind": "prompt"}], changes_as="together")
    outcome, _ = go(path)
    assert outcome.failed == []
    assert lines(path, "full") == lines(path, "prompt") == [("final", "france"), ("final", "japan")]
    cells = [c for c in results(path)["cells"] if c["method"] == "full"]
    assert len({c["fingerprint"] for c in cells}) == len({c["folder"] for c in cells}) == 1
    assert cells[0]["folder"].endswith("--full--together--s0")
    (row,) = [s for s in results(path)["summary"] if s["method"] == "full"]
    assert row["changes"]["reliability"] == 2
    samples = (path.parent / "run" / cells[0]["folder"] / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["change"] for line in samples] == ["france"] * 5 + ["japan"] * 5


def test_changes_in_sequence_are_examined_on_all_that_was_taught(study: Callable[..., Path]) -> None:
    path = study(methods=[{**TRAIN, "name": "full"}], changes_as={"sequence": 1})
    outcome, _ = go(path)
    assert outcome.failed == []
    assert lines(path, "full") == [("changes-1", "france"), ("final", "france"), ("final", "japan")]
    cells = results(path)["cells"]
    assert cells[0]["scores"]["reliability"] == 1.0
    assert cells[2]["scores"]["reliability"] == 1.0
    outcome, _ = go(path)
    assert (outcome.ran, outcome.skipped) == (0, 1)


def test_a_changed_input_makes_anew_what_depends_on_it_and_nothing_else(study: Callable[..., Path]) -> None:
    path = study(
        methods=[
            {**TRAIN, "name": "one"},
            {**OTHER, "start": "one"},
            {**TRAIN, "name": "alone", "tuner": {"kind": "lora", "rank": 2}},
        ],
        changes="changes/france.yaml",
    )
    _, listener = go(path)
    assert listener.ran == ["one/france", "other/france", "alone/france"]
    _, listener = go(path, "methods.one.optimizer.max_steps=5")
    assert listener.ran == ["one/france", "other/france"]
    _, listener = go(path, "methods.one.optimizer.max_steps=5", "methods.other.optimizer.max_steps=5")
    assert listener.ran == ["other/france"]
    assert any((path.parent / "run" / c["weights"]).is_dir() for c in results(path)["cells"] if c["method"] == "one")
    assert not any(c["weights"] for c in results(path)["cells"] if c["method"] != "one")


def test_only_a_method_takes_along_what_it_starts_from(study: Callable[..., Path]) -> None:
    methods = [{**OTHER, "start": "one"}, {**TRAIN, "name": "one"}, {"kind": "prompt"}]
    path = study(methods=methods, changes="changes/france.yaml")
    _, listener = go(path, only=["other"])
    assert listener.ran == ["one/france", "other/france"]


def test_what_starts_from_a_cell_that_failed_fails_too(study: Callable[..., Path]) -> None:
    methods = [{**TRAIN, "name": "one", "max_length": 4}, {**OTHER, "start": "one"}]
    path = study(methods=methods, changes="changes/france.yaml")
    outcome, _ = go(path)
    assert [r.first.method for r in outcome.failed] == ["one", "other"]
    assert "needs the model of 'one', which failed" in outcome.failed[1].error


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ([{**OTHER, "start": "none"}], "starts from 'none', which is no method here"),
        ([{"kind": "prompt"}, {**OTHER, "start": "prompt"}], "needs the model of 'prompt', which leaves none"),
        (
            [{**OTHER, "name": "a", "start": "b"}, {**OTHER, "name": "b", "start": "a"}],
            "'a' needs its own model, directly",
        ),
        ([{**OTHER, "start": "other"}], "'other' needs its own model"),
        ([{**OTHER, "name": "untouched"}], "the report has a row 'untouched' of its own"),
        ([{**OTHER, "name": "noise floor"}], "the report has a row 'noise floor' of its own"),
        ([{**OTHER, "name": "x" * 61}], "at most 60 characters"),
        ([{"name": "c", "steps": [{"kind": "prompt"}, TRAIN]}], "prompt leaves no model"),
        ([{"name": "c", "steps": [TRAIN]}], "at least 2"),
        ([{"name": "c", "steps": [TRAIN, {**TRAIN, "start": "c"}]}], "leave out 'start'"),
        ([{"name": "c", "steps": [TRAIN, {"kind": "steps", "steps": [TRAIN, TRAIN]}]}], "cannot stand here"),
    ],
)
def test_a_graph_that_cannot_be_run_is_refused(
    study: Callable[..., Path], methods: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_yaml(study(methods=methods), Study)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, list[Any]]:
    """What a study finds that is not disturbed, once it was run: the tests below disturb it in several ways."""
    return {}


@pytest.mark.parametrize("stop_at", [*(2, 3, 5), *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 6))])
def test_a_chain_that_was_stopped_goes_on(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, list[Any]], stop_at: int
) -> None:
    """Stopped before or after any of its exams, it ends with the same results, and trains no step twice."""
    whole = study(methods=[chain()], changes="changes/france.yaml", output="whole")
    if "stopped" not in undisturbed:
        go(whole)
        undisturbed["stopped"] = [(c["checkpoint"], c["scores"], c["fingerprint"]) for c in results(whole)["cells"]]
        (whole.parent / "run").rename(whole.parent / "first")
    expected = undisturbed["stopped"]
    take = stopping_at(monkeypatch, stop_at)
    with pytest.raises(Interrupted):
        go(whole)
    monkeypatch.setattr(Examiner, "take", take)
    outcome, listener = go(whole)
    assert outcome.failed == []
    assert [(c["checkpoint"], c["scores"], c["fingerprint"]) for c in results(whole)["cells"]] == expected
    assert len(listener.steps) == {1: 6, 2: 6, 3: 0, 4: 0}.get(stop_at, 0)


def test_an_exam_that_fails_is_an_error_in_the_method(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[str] = []

    def offered(config: Any, cell: CellContext) -> Iterator[Candidate]:
        try:
            yield from real(config, cell)
        except PosttrainError as error:
            caught.append(str(error))
            raise

    from posttrain import registry

    entry = registry.load("method", "prompt")
    real = entry.function
    monkeypatch.setitem(
        registry._entries, ("method", "prompt"), registry.Entry("method", "prompt", offered, entry.config)
    )

    def fail(self: Examiner, *args: Any, **options: Any) -> Any:
        raise PosttrainError("the exam broke")

    monkeypatch.setattr(Examiner, "take", fail)
    outcome, _ = go(study(methods=[{"kind": "prompt"}], changes="changes/france.yaml"))
    assert [r.error for r in outcome.failed] == ["the exam broke"]
    assert caught == ["the exam broke"]


def test_an_adapter_that_cannot_be_merged_ends_its_chain_and_no_other_cell(study: Callable[..., Path]) -> None:
    steps = [{**TRAIN, "name": "prefix", "tuner": "ptuning_v2"}, TRAIN]
    path = study(methods=[{"name": "chain", "steps": steps}, {**TRAIN, "name": "plain"}], changes="changes/france.yaml")
    outcome, _ = go(path)
    assert {one.first.method for one in outcome.failed} == {"chain"}
    assert "adapter cannot be merged into its base" in outcome.failed[0].error


def stop_at(monkeypatch: pytest.MonkeyPatch, path: Path, point: str) -> None:
    """Run a study that is stopped before a point is examined."""
    take = Examiner.take

    def stopped(self: Examiner, changes: Any, respondent: Any, checkpoint: str, *rest: Any, **options: Any) -> Any:
        if checkpoint == point:
            raise KeyboardInterrupt
        return take(self, changes, respondent, checkpoint, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Examiner, "take", stopped)
        with pytest.raises(Interrupted):
            go(path)


def points(path: Path) -> list[str]:
    return [c["checkpoint"] for c in results(path)["cells"] if c["method"] == "chain"]


@pytest.mark.parametrize("keep", ["none", pytest.param("final", marks=pytest.mark.slow), "all"])
def test_an_exam_more_is_taken_at_every_point_of_a_finished_chain(
    study: Callable[..., Path], tmp_path: Path, keep: str
) -> None:
    first = {**TRAIN, "merge_back": [0.5]}
    steps = [{**first, "name": "f"}, {**TRAIN, "data": "rows.jsonl", "name": "g"}, {"kind": "blend"}]
    asked: dict[str, Any] = {
        "methods": [{"name": "chain", "steps": steps}],
        "changes": "changes/france.yaml",
        "checkpoints": {"every": 3},
        "keep": keep,
    }
    path = study(**asked)
    go(path)
    expected = points(path)
    own = ["1-f.step-3", "after-1-f", "1-f.blend-0.50", "2-g.step-3", "after-2-g", "final"]
    assert expected == own  # where training ends at a saved step, that is the end
    again = study(**asked, max_new_tokens=9)
    outcome, listener = go(again)
    assert outcome.failed == []
    assert points(again) == expected
    if keep == "all":
        assert listener.steps == []  # every model was still there


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        ("gone", "after-1-f"),
        ("gone", "1-f.step-3"),
        ("damaged", "1-f.blend-0.50"),
        pytest.param("gone", "1-f.blend-0.50", marks=pytest.mark.slow),
        pytest.param("damaged", "after-1-f", marks=pytest.mark.slow),
        pytest.param("damaged", "1-f.step-3", marks=pytest.mark.slow),
    ],
)
def test_a_point_of_a_finished_step_that_was_lost_is_examined_again(
    study: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, list[Any]],
    lost: str,
    how: str,
) -> None:
    steps = [{**TRAIN, "merge_back": [0.5], "name": "f"}, {**TRAIN, "data": "rows.jsonl", "name": "g"}]
    path = study(methods=[{"name": "chain", "steps": steps}], changes="changes/france.yaml", checkpoints={"every": 3})
    if "lost" not in undisturbed:
        go(path)
        undisturbed["lost"] = results(path)["cells"]
        (path.parent / "run").rename(path.parent / "first")
    expected = undisturbed["lost"]
    stop_at(monkeypatch, path, "2-g.step-3")
    (file,) = (path.parent / "run").glob(f"cells/*/checkpoints/{lost}/examined.json")
    if how == "gone":
        file.unlink()
    else:
        file.write_text(file.read_text(encoding="utf-8")[:40], encoding="utf-8")
    outcome, _ = go(path)
    assert outcome.failed == []
    assert sorted(points(path)) == sorted(c["checkpoint"] for c in expected)
    scores = {c["checkpoint"]: c["scores"] for c in results(path)["cells"]}
    assert scores == {c["checkpoint"]: c["scores"] for c in expected}


def test_points_of_a_chain_within_a_sequence_have_names_of_their_own(study: Callable[..., Path]) -> None:
    path = study(
        methods=[{"name": "chain", "steps": [{**TRAIN, "name": "f"}, {**TRAIN, "data": "rows.jsonl", "name": "g"}]}],
        changes_as={"sequence": 1},
        checkpoints={"every": 3},
    )
    outcome, _ = go(path)
    assert outcome.failed == []
    names = {name for name in points(path) if ".step-3" in name}
    assert {re.sub(r"^\d-\w+\.", "", name) for name in names} == {"1-f.step-3", "2-g.step-3"}
    assert len(names) == 4


@pytest.mark.parametrize("where", [{"sequence": 1}, "together"])
def test_a_method_with_an_input_learns_changes_in_every_way(study: Callable[..., Path], where: Any) -> None:
    blended = {"name": "toward", "kind": "blend", "weight": 0.3, "inputs": {"toward": "taught"}}
    path = study(methods=[{**TRAIN, "name": "taught"}, blended], changes_as=where)
    outcome, _ = go(path)
    assert [result.error for result in outcome.failed] == []


def test_a_method_runs_again_when_another_one_comes_to_need_its_model(study: Callable[..., Path]) -> None:
    one, other = {**TRAIN, "name": "one"}, {**OTHER, "start": "one"}
    go(study(methods=[one], changes="changes/france.yaml"))
    outcome, _ = go(study(methods=[one, other], changes="changes/france.yaml"))
    assert outcome.failed == []
    (file,) = Path(outcome_folder := study(methods=[one, other], changes="changes/france.yaml")).parent.glob(
        "run/cells/*--one--*/training/model/model.safetensors"
    )
    file.write_bytes(file.read_bytes()[:-10])  # a copy that broke off
    for result in Path(outcome_folder).parent.glob("run/cells/*--other--*/result.json"):
        result.unlink()
    outcome, _ = go(outcome_folder)
    assert outcome.failed == []


def test_a_stopped_chain_goes_on_where_its_run_folder_is_written_in_another_way(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study(methods=[chain()], changes="changes/france.yaml", checkpoints={"every": 3})
    stop_at(monkeypatch, path, "2-train.step-3")
    moved = path.parent.with_name("moved")
    path.parent.rename(moved)
    outcome, _ = go(moved / path.name)
    assert [result.error for result in outcome.failed] == []


@pytest.mark.parametrize("more", [{"save_dtype": "bfloat16"}, {"tuner": "lora"}])
def test_the_last_step_of_a_kept_training_keeps_its_row(study: Callable[..., Path], more: dict[str, str]) -> None:
    asked: dict[str, Any] = {
        "methods": [{**TRAIN, **more}],
        "changes": "changes/france.yaml",
        "checkpoints": {"every": 3},
        "keep": "all",
    }
    path = study(**asked)
    go(path)
    expected = [c["checkpoint"] for c in results(path)["cells"]]
    outcome, listener = go(again := study(**asked, max_new_tokens=9))
    assert (outcome.failed, listener.steps) == ([], [])
    assert [c["checkpoint"] for c in results(again)["cells"]] == expected


@pytest.mark.parametrize("text", ["[1]", "{}", '{"steps": null}', "{"])
def test_a_damaged_result_of_a_training_is_made_again(study: Callable[..., Path], text: str) -> None:
    path = study(methods=[TRAIN], changes="changes/france.yaml", keep="final")
    go(path)
    expected = [c["scores"] for c in results(path)["cells"]]
    (cell,) = (path.parent / "run/cells").iterdir()
    (cell / "training/result.json").write_text(text, encoding="utf-8")
    (cell / "result.json").unlink()
    outcome, _ = go(path)
    assert [one.error for one in outcome.failed] == []
    assert [c["scores"] for c in results(path)["cells"]] == expected
