"""Steering in a study: the vector by hand, points, ends that are copied, kills, sequences, selection, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.load import check
from posttrain.data.changes import load_changes
from posttrain.data.readers import DataSource, read_records
from posttrain.errors import ConfigError, DataError, Interrupted, PosttrainError
from posttrain.exams.results import read_results
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.added import added_to
from posttrain.models.fingerprint import weights_fingerprint
from posttrain.models.load import load_model
from posttrain.models.steering_vector import SteeringVector
from posttrain.reports.html import write_report
from posttrain.studies.candidates import CellContext
from posttrain.studies.examine import Examiner
from posttrain.studies.methods.steer import steer
from posttrain.studies.steer_config import SteerConfig
from tests.studies.conftest import TRAIN, stopping_at
from tests.studies.methods.test_train import bench_of, context_of
from tests.studies.test_run import go, results

CONTRAST = {"name": "contrast", "kind": "steer", "strength": 2.0, "strengths": [1, 2.0]}
TRAINED = {
    "name": "trained",
    "kind": "steer",
    "source": "trained",
    "training": {"steps": 40, "learning_rate": 0.1, "bound": 4.0},
}
FRANCE = "changes/france.yaml"


def config(**fields: Any) -> SteerConfig:
    return check({"kind": "steer", **fields}, SteerConfig, "test")


@pytest.fixture
def context(make_study: Callable[..., Path], tmp_path: Path) -> CellContext:
    """The cell of the talker's first change, read from its file."""
    make_study()
    bench = bench_of(tmp_path, frozenset({"who wrote Hamlet?"}))
    return context_of(bench, tmp_path / "cell", load_changes([FRANCE], tmp_path)[0])


def vector_in(respondent: Any) -> torch.Tensor:
    part = added_to(respondent.model)
    assert isinstance(part, SteeringVector)
    return part.vector.detach().clone()


def points(path: Path, method: str) -> list[str]:
    return [cell["checkpoint"] for cell in results(path)["cells"] if cell["method"] == method]


@torch.no_grad()
def mean_state(bench: Any, question: str, answer: str, layer: int) -> torch.Tensor:
    """The mean of a layer's states over an answer's tokens, read by transformers alone."""
    pair = bench.before.encode_pair(question, answer)
    ids = torch.tensor([[*pair.prompt, *pair.answer]])
    states = bench.loaded.model(input_ids=ids, output_hidden_states=True).hidden_states
    # hidden_states[0] is the embedding; the last entry is after the final norm
    found: torch.Tensor = states[layer + 1][0, len(pair.prompt) :].mean(0)
    return found


# ---- the vector ------------------------------------------------------------------------------------------------------


def test_the_contrast_of_targets_by_hand(context: CellContext) -> None:
    before = weights_fingerprint(context.bench.loaded.model)
    (end,) = steer(config(layer=0), context)
    assert isinstance(end.respondent, ModelRespondent)
    expected = mean_state(context.bench, "capital of France?", "Tokyo", 0)
    expected -= mean_state(context.bench, "capital of France?", "Paris", 0)
    assert (vector_in(end.respondent) - expected).abs().max() <= 1e-5
    assert end.notes[0] == "the contrast of 1 pair: 'Tokyo' instead of 'Paris'"
    assert end.notes[2] == "added behind layer 0 of 2 (counted from 0)"
    assert end.cost["steps"] == 0
    assert end.cost["moved"] == 32
    assert weights_fingerprint(context.bench.loaded.model) == before
    assert context.bench.before.generate(["capital of France?"]) == ["Paris"]


def test_several_changes_have_the_mean(context: CellContext, tmp_path: Path) -> None:
    both = tuple(load_changes(["changes/*.yaml"], tmp_path))
    (end,) = steer(config(layer=0), dataclasses.replace(context, changes=both))
    parts = [
        mean_state(context.bench, f"capital of {land}?", new, 0)
        - mean_state(context.bench, f"capital of {land}?", old, 0)
        for land, new, old in (("France", "Tokyo", "Paris"), ("Japan", "Paris", "Tokyo"))
    ]
    assert (vector_in(end.respondent) - (parts[0] + parts[1]) / 2).abs().max() <= 1e-5


def test_pairs_of_a_file_are_taken_instead(context: CellContext, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hello", "positive": "yo", "negative": "hi"},
        {"prompt": "good night?", "completion": "sleep"},  # its negative is what the model says now
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_records(DataSource(path=str(path))).formats == {
        "positive and negative answers": 1, "prompt and completion": 1,
    }  # fmt: skip
    chosen = config(layer=0, pairs="pairs.jsonl", strengths=[1.0, -1.0])
    assert chosen.files("france") == ["pairs.jsonl"]
    assert not chosen.needs_change
    said = context.bench.before.generate(["good night?"])[0]
    *_, end = steer(chosen, context)
    parts = [
        mean_state(context.bench, asked, new, 0) - mean_state(context.bench, asked, old, 0)
        for asked, new, old in (("hello", "yo", "hi"), ("good night?", "sleep", said))
    ]
    assert (vector_in(end.respondent) - (parts[0] + parts[1]) / 2).abs().max() <= 1e-5
    alone = dataclasses.replace(context, changes=(), folder=tmp_path / "alone")
    *_, other = steer(chosen, alone)
    assert torch.equal(vector_in(other.respondent), vector_in(end.respondent))


def test_a_trained_vector_says_the_answer_and_ends(context: CellContext) -> None:
    told: list[Mapping[str, Any]] = []
    (end,) = steer(
        config(**{k: v for k, v in TRAINED.items() if k != "name"}), dataclasses.replace(context, on_step=told.append)
    )
    assert isinstance(end.respondent, ModelRespondent)
    (answer,) = end.respondent.answers(["capital of France?"], max_new_tokens=8)
    assert (answer.text, answer.ended) == ("Tokyo", True)
    assert end.cost["steps"] == len(told) > 0
    assert told[-1]["steps"] == 40
    assert told[-1]["loss_nats"] < told[0]["loss_nats"]
    assert any(note.startswith(f"trained in {len(told)} steps to 0.0") for note in end.notes)
    assert end.cost["tokens"] == told[-1]["tokens"] / len(told) * (len(told) + 1)


def test_answers_alone_can_be_steered(context: CellContext) -> None:
    whole, alone = (
        next(iter(steer(config(where=where, layer=0), dataclasses.replace(context, folder=context.folder / where))))
        for where in ("all", "answer")
    )
    assert torch.equal(vector_in(whole.respondent), vector_in(alone.respondent))
    assert whole.respondent is not None
    assert alone.respondent is not None
    assert whole.respondent.fingerprint != alone.respondent.fingerprint
    with pytest.warns(UserWarning, match="its steering vector begins at the last token of each prompt"):
        alone.respondent.generate(["hello", "who wrote Hamlet?"])


# ---- in a study ------------------------------------------------------------------------------------------------------


def test_strengths_are_points_and_the_end_is_not_examined_twice(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    take = Examiner.take

    def counted(self: Examiner, changes: Any, respondent: Any, checkpoint: str, *more: Any, **options: Any) -> Any:
        taken.append(checkpoint)
        return take(self, changes, respondent, checkpoint, *more, **options)

    monkeypatch.setattr(Examiner, "take", counted)
    path = make_study(changes=FRANCE, methods=[CONTRAST, {**TRAINED, "strengths": [-0.5, 0.5]}])
    outcome, _ = go(path)
    assert outcome.failed == []
    assert points(path, "contrast") == ["strength-1.00", "strength-2.00", "final"]
    assert points(path, "trained") == ["strength--0.50", "strength-0.50", "final"]
    assert taken == ["strength-1.00", "strength-2.00", "strength--0.50", "strength-0.50", "final"]
    cells = {(c["method"], c["checkpoint"]): c for c in results(path)["cells"]}
    end, same = cells["contrast", "final"], cells["contrast", "strength-2.00"]
    assert (end["scores"], end["fingerprint"]) == (same["scores"], same["fingerprint"])
    assert cells["trained", "final"]["scores"]["reliability"] == 1.0
    folders = [path.parent / "run" / one["folder"] for one in (end, same)]
    assert folders[0] != folders[1]
    logs = [(folder / "samples.jsonl").read_text(encoding="utf-8") for folder in folders]
    assert logs[0] == logs[1] != ""
    exams_s = sum(cells["contrast", name]["cost"]["exam_s.change"] for name in ("strength-1.00", "strength-2.00"))
    assert read_results(path.parent / "run").cells[0].cost["wall_s"] >= exams_s
    assert not (folders[0] / "training").exists()
    steps = [
        json.loads(line)
        for line in (folders[0].parent / Path(cells["trained", "final"]["folder"]).name / "metrics.jsonl")
        .read_text("utf-8")
        .splitlines()
    ]
    assert len(steps) == cells["trained", "final"]["cost"]["steps"]
    assert go(path)[0].ran == 0  # nothing twice
    for language, words in (("en", "Strengths side by side"), ("zh-TW", "各種強度並列")):
        page = write_report(path.parent / "run", language=language).read_text(encoding="utf-8")
        assert words in page


@pytest.fixture(scope="module")
def undisturbed() -> list[Any]:
    """What a study that is not stopped finds and how many steps it trains, once it was run."""
    return []


@pytest.mark.parametrize("stop_at", [*(1, 4, 7), *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 5, 6, 8))])
def test_a_stopped_study_goes_on(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any], stop_at: int
) -> None:
    """Stopped before or after any exam, it ends with the same results; the vector is trained once."""
    path = make_study(changes=FRANCE, methods=[{**TRAINED, "strengths": [0.5, 1.0, 1.5], "strength": 1.25}])
    if not undisturbed:
        _, listener = go(path)
        cells = [(c["checkpoint"], c["scores"], c["fingerprint"]) for c in results(path)["cells"]]
        undisturbed += [cells, len(listener.steps)]
        (path.parent / "run").rename(path.parent / "first")
    expected, trained = undisturbed
    take = stopping_at(monkeypatch, stop_at)
    with pytest.raises(Interrupted):
        go(path)
    monkeypatch.setattr(Examiner, "take", take)
    outcome, listener = go(path)
    assert outcome.failed == []
    assert [(c["checkpoint"], c["scores"], c["fingerprint"]) for c in results(path)["cells"]] == expected
    assert listener.steps == []
    assert results(path)["cells"][0]["cost"]["steps"] == trained


def test_a_kept_vector_is_a_small_folder_that_answers_alike(make_study: Callable[..., Path]) -> None:
    path = make_study(changes=FRANCE, methods=[TRAINED], keep="final")
    assert go(path)[0].failed == []
    (cell,) = results(path)["cells"]
    folder = path.parent / "run" / cell["weights"]
    assert sum((folder / f"adapter_{name}").stat().st_size for name in ("config.json", "model.safetensors")) < 2000
    again = ModelRespondent(load_model(str(folder), device="cpu"))
    assert again.fingerprint == cell["fingerprint"]
    assert again.generate(["capital of France?"]) == ["Tokyo"]
    part = added_to(again.model)
    assert isinstance(part, SteeringVector)
    with part.switched_off():
        assert again.generate(["capital of France?", "hello"]) == ["Paris", "hi"]
    samples = (path.parent / "run" / cell["folder"] / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    for sample in map(json.loads, samples):
        assert again.generate([sample["prompt"]], max_new_tokens=12) == [sample["after"]]


def test_a_strength_is_searched(make_study: Callable[..., Path], tmp_path: Path) -> None:
    """The selecting exam has the steered answer; of the strengths that give it, the weakest is taken."""
    (tmp_path / "dev.jsonl").write_text(
        json.dumps({"prompt": "capital of France?", "completion": "Tokyo"}), encoding="utf-8"
    )
    dev = {"kind": "self_test", "name": "dev", "path": "dev.jsonl", "headline": "exact", "role": "select"}
    method = {**TRAINED, "strength": "search", "strengths": [0.1, 1.0, 1.25]}
    path = make_study(changes=FRANCE, methods=[method], exams=["change", dev])
    assert go(path)[0].failed == []
    cells = {c["checkpoint"]: c for c in results(path)["cells"]}
    assert list(cells) == ["strength-0.10", "strength-1.00", "strength-1.25", "final"]
    card = (path.parent / "run" / cells["final"]["folder"] / "card.md").read_text(encoding="utf-8")
    assert "strength 1 chosen by dev.exact: 0.1: 0.000, 1: 1.000, 1.25: 1.000" in card
    assert cells["final"]["fingerprint"] == cells["strength-1.00"]["fingerprint"]
    with pytest.raises(ConfigError, match="strength: search chooses by exams with role: select"):
        go(make_study(changes=FRANCE, methods=[method]))


def test_changes_together_and_in_sequence(make_study: Callable[..., Path]) -> None:
    methods = [{**CONTRAST, "strengths": None}, {**CONTRAST, "name": "searched"}]
    path = make_study(methods=methods, changes_as="together")
    assert go(path)[0].failed == []
    assert points(path, "contrast") == ["final"] * 2  # one for each change
    together = {c["fingerprint"] for c in results(path)["cells"] if c["method"] == "contrast"}
    assert len(together) == 1
    path = make_study(methods=methods, changes_as={"sequence": 1})
    assert go(path)[0].failed == []
    cells = [c for c in results(path)["cells"] if c["method"] == "contrast"]
    assert [(c["checkpoint"], c["change"]) for c in cells] == [
        ("changes-1", "france"), ("final", "france"), ("final", "japan"),
    ]  # fmt: skip
    assert {cells[1]["fingerprint"]} == together != {cells[0]["fingerprint"]}


def test_it_starts_from_what_another_method_has_left(make_study: Callable[..., Path]) -> None:
    taught = {"name": "taught", **TRAIN}
    start = {**CONTRAST, "name": "steered", "start": "taught", "pairs": "pairs.jsonl"}
    last = {"name": "chain", "steps": [TRAIN, {**CONTRAST, "pairs": "pairs.jsonl"}]}
    path = make_study(changes=FRANCE, methods=[taught, start, last], keep="final")
    (path.parent / "pairs.jsonl").write_text(
        json.dumps({"prompt": "hello", "positive": "yo", "negative": "hi"}), encoding="utf-8"
    )
    assert go(path)[0].failed == []
    assert points(path, "chain") == ["after-1-train", "2-contrast.strength-1.00", "2-contrast.strength-2.00", "final"]
    ends = {c["method"]: c for c in results(path)["cells"] if c["checkpoint"] == "final"}
    for name in ("steered", "chain"):
        loaded = load_model(str(path.parent / "run" / ends[name]["weights"]), device="cpu")
        assert ModelRespondent(loaded).fingerprint == ends[name]["fingerprint"]
    assert ends["steered"]["scores"] == ends["chain"]["scores"]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_target_that_the_model_says_already_has_no_contrast(context: CellContext, tmp_path: Path) -> None:
    known = tmp_path / "changes" / "known.yaml"
    known.write_text(
        'name: known\ntarget:\n  - {prompt: "capital of France?", answer: [It is Paris, Paris]}\n'
        '  - {prompt: "capital of Japan?", answer: Kyoto}\n',
        encoding="utf-8",
    )
    some = load_changes(["changes/known.yaml"], tmp_path)[0]
    (end,) = steer(config(layer=0), dataclasses.replace(context, changes=(some,)))
    left = f"left out: {known}:3 (change known, target 1): the model says the wanted answer already ('Paris')"
    assert end.notes[0].startswith(left)
    assert end.notes[1] == "the contrast of 1 pair: 'Kyoto' instead of 'Tokyo'"
    known.write_text(known.read_text("utf-8").replace("Kyoto", "Tokyo"), encoding="utf-8")
    none = load_changes(["changes/known.yaml"], tmp_path)[0]
    other = dataclasses.replace(context, changes=(none,), folder=tmp_path / "other")
    with pytest.raises(DataError) as caught:
        next(steer(config(layer=0), other))
    assert [str(problem).partition(": the model says")[0] for problem in caught.value.problems] == [
        f"{known}:3 (change known, target 1)",
        f"{known}:4 (change known, target 2)",
    ]
    (trained,) = steer(config(source="trained"), other)  # it needs no contrast
    assert trained.cost["steps"] >= 0


def test_rows_that_are_no_pairs_or_are_asked_by_an_exam_are_named(context: CellContext, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    wrong = [{"text": "a"}, {"prompt": "b?", "positive": "c", "negative": "d"}, {"text": "e"}]
    path.write_text("\n".join(map(json.dumps, wrong)), encoding="utf-8")
    chosen = config(pairs="pairs.jsonl")
    with pytest.raises(DataError) as caught:
        next(steer(chosen, context))
    assert [str(p).partition(": a prompt with")[0] for p in caught.value.problems] == [f"{path}:1", f"{path}:3"]
    path.write_text(json.dumps({"prompt": "Who wrote Hamlet?", "positive": "I", "negative": "he"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs.jsonl:1: this row's question is asked by the exam"):
        next(steer(chosen, context))
    assert len(chosen.barred("france", tmp_path, context.bench.forbidden)) == 1
    path.write_text(json.dumps({"prompt": "b?", "positive": "c"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs.jsonl:1: a pair without 'negative'"):
        next(steer(chosen, context))


def test_rows_longer_than_the_model_are_named(context: CellContext, tmp_path: Path) -> None:
    row = {"prompt": "hello", "positive": "臺灣" * 300, "negative": "hi"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row), encoding="utf-8")
    for source in ("contrast", "trained"):
        with pytest.raises(DataError, match=r"pairs.jsonl:1: has \d+ tokens, the model has 512 positions; shorten it"):
            next(steer(config(source=source, pairs="pairs.jsonl"), context))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strengths": []}, "strengths is empty; name some"),
        ({"strengths": [1.0, float("nan")]}, "strengths.1: a finite number is expected"),
        ({"strength": float("inf")}, "strength: a finite number is expected"),
        ({"strengths": [0.0, 1.0]}, "a strength of 0 is the untouched model"),
        ({"strengths": [1, 1.001]}, "two of them are strength-1.00"),
        ({"strength": "search"}, "strength: search chooses among 'strengths', and there are none"),
        ({"training": {"steps": 3}}, "training is for source: trained"),
        ({"layer": "last"}, "layer: a whole number is expected"),
        ({"inputs": {"toward": "x"}}, "takes no input 'toward'"),
        ({"pairs": "{name}.jsonl"}, "name"),
    ],
)
def test_settings_that_cannot_be_are_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_a_layer_that_is_not_there(context: CellContext) -> None:
    with pytest.raises(
        ConfigError, match="method 'steer': layer: there is no layer 2: LlamaForCausalLM has layers 0 to 1"
    ):
        next(steer(config(layer=2), context))


def test_no_method_goes_on_from_it_or_merges_it(make_study: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'more' needs the model of 'contrast', which leaves none"):
        go(make_study(methods=[CONTRAST, {**TRAIN, "name": "more", "start": "contrast"}]))
    with pytest.raises(ConfigError, match="contrast leaves no model that the next step could start from"):
        go(make_study(methods=[{"name": "chain", "steps": [CONTRAST, TRAIN]}]))
    path = make_study(changes=FRANCE, methods=[TRAINED], keep="final")
    go(path)
    folder = path.parent / "run" / results(path)["cells"][0]["weights"]
    blend = {"name": "half", "kind": "blend", "inputs": {"toward": str(folder)}}
    mixed = make_study(changes=FRANCE, methods=[blend])
    outcome, _ = go(mixed)
    (failed,) = outcome.failed
    assert failed.error is not None
    assert "steering_vector puts something beside the weights, there is nothing between" in failed.error


def test_what_is_trained_on_top_is_an_error_that_says_why(make_study: Callable[..., Path]) -> None:
    path = make_study(changes=FRANCE, methods=[TRAINED], keep="final")
    go(path)
    folder = path.parent / "run" / results(path)["cells"][0]["weights"]
    top = make_study(
        changes=FRANCE, models=str(folder), methods=[{"kind": "prompt"}, {"name": "full", **TRAIN}, CONTRAST]
    )
    outcome, _ = go(top)
    assert {failed.first.method for failed in outcome.failed} == {"full", "contrast"}
    for failed in outcome.failed:
        assert "a steering_vector adapter cannot be merged into its base" in failed.error
        assert "examine it as it is, or train its base" in failed.error
    with pytest.raises(PosttrainError, match="cannot be merged into its base"):
        load_model(str(folder), device="cpu", adapter_merged=True)
