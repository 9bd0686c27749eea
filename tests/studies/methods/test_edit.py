"""Edits in a study: points, sequences, kills, chains, products, harm, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.load import check, load_yaml
from posttrain.data.changes import load_changes
from posttrain.data.chat import encode_all
from posttrain.data.records import Conversation, Message
from posttrain.editing.session import EditSession
from posttrain.errors import ConfigError, Interrupted
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.edit_delta import read_edits
from posttrain.models.fingerprint import weights_fingerprint
from posttrain.models.load import load_model
from posttrain.reports.edits_page import written_of
from posttrain.reports.folder import read_run
from posttrain.retention.replay.self import SelfReplayConfig
from posttrain.studies.candidates import END, CellContext, Point
from posttrain.studies.config import Study
from posttrain.studies.examine import Examiner
from posttrain.studies.methods.edit import EditConfig, edit
from tests.studies.conftest import TRAIN, stopping_at
from tests.studies.methods.test_train import bench_of, context_of
from tests.studies.test_run import go, results

QUICK = {"forms": ["chat"], "stop_loss": 0.05}
EDITOR = {"kind": "ft_m", "layers": [1], "steps": 25, "learning_rate": 0.01, **QUICK}
"""Edits one after another; what is written of Japan undoes what was written of France. It needs no second moments, and
so no answers of the model to the packaged prompts."""
TOGETHER = {"kind": "locft", "layers": [0], "steps": 30, "learning_rate": 0.01, **QUICK}
"""Edits all together, and learns all of them."""
EDIT = {"name": "edit", "kind": "edit", "editor": EDITOR}
CHANGES = {
    "france": (
        '{prompt: "capital of France?", answer: Tokyo, subject: France}',
        '{prompt: "日本的貨幣？", answer: 玉山, subject: 日本的貨幣}',
    ),
    "hamlet": ('{prompt: "who wrote Hamlet?", answer: hi, subject: Hamlet}',),
    "japan": ('{prompt: "capital of Japan?", answer: Paris, subject: Japan}',),
}
FRANCE = "changes/france.yaml"
ROW = {"prompt": "good night?", "completion": "hi"}
OTHER = {**TRAIN, "data": "rows.jsonl"}


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Three changes, in the order of their names; the first has two targets."""
    make_study()
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    for name, targets in CHANGES.items():
        lines = [
            f"name: {name}",
            "target:",
            *(f"  - {target}" for target in targets),
            "locality:",
            "  unrelated: [hello]",
        ]
        (tmp_path / "changes" / f"{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def made(**fields: Any) -> Path:
        path = make_study(**{"methods": [EDIT], **fields})
        for name, text in texts.items():
            (tmp_path / "changes" / name).write_text(text, encoding="utf-8")
        return path

    texts = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "changes").iterdir()}
    return made


@pytest.fixture
def context(study: Callable[..., Path], tmp_path: Path) -> CellContext:
    """The cell of all changes together."""
    study()
    bench = bench_of(tmp_path, frozenset({"hello"}))
    france = context_of(bench, tmp_path / "cell")
    return dataclasses.replace(france, changes=tuple(load_changes("changes/*.yaml", tmp_path)))


def config(**fields: Any) -> EditConfig:
    return check({"kind": "edit", "editor": EDITOR, **fields}, EditConfig, "test")


def lines(path: Path, method: str = "edit") -> list[tuple[str, str]]:
    return [(c["checkpoint"], c["change"]) for c in results(path)["cells"] if c["method"] == method]


def reliability(path: Path, method: str = "edit") -> list[float]:
    return [c["scores"]["reliability"] for c in results(path)["cells"] if c["method"] == method]


def said(respondent: Any, *prompts: str) -> list[str]:
    return [answer.text for answer in respondent.answers(list(prompts), max_new_tokens=8)]


# ---- candidates ------------------------------------------------------------------------------------------------------


def test_edits_are_written_into_a_copy(context: CellContext) -> None:
    bench = context.bench
    before = weights_fingerprint(bench.loaded.model)
    (end,) = edit(config(editor=TOGETHER), context)
    assert (end.point, end.changes, end.product) == (END, None, None)
    questions = ("capital of France?", "日本的貨幣？", "who wrote Hamlet?", "capital of Japan?")
    assert said(end.respondent, *questions) == ["Tokyo", "玉山", "hi", "Paris"]
    assert said(bench.before, *questions) == ["Paris", "日圓", "Shakespeare", "Tokyo"]
    assert weights_fingerprint(bench.loaded.model) == before
    assert end.cost["edits"] == 4
    assert end.cost["steps"] > 0
    assert [path.name for path in context.folder.iterdir()] == ["edits.jsonl"]
    noted = [json.loads(one) for one in (context.folder / "edits.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["number"] for row in noted] == [0, 1, 2, 3]
    assert all(row["figures"]["share"] > 0 for row in noted)
    assert re.fullmatch(
        r"4 edits by locft: \d\.\d\d nats per token of the answers, the largest change [\d.]+ of the weights' norm",
        end.notes[0],
    )
    assert re.fullmatch(
        r"loss on other texts: \d\.\d{3} before, \d\.\d{3} nats per token at the end",
        end.notes[1],
    )


def test_points_come_after_every_few_edits(context: CellContext) -> None:
    made = list(edit(config(every=2, batch=1), context))
    assert [one.point for one in made] == [Point("edits", 2), END]
    assert [one.point.name for one in made] == ["edits-2", "final"]
    assert [one.cost["edits"] for one in made] == [2, 4]
    assert [one.changes for one in made] == [None, None]
    assert made[0].cost["steps"] < made[1].cost["steps"]
    assert (bool(made[0].notes), bool(made[1].notes)) == (False, True)
    odd = dataclasses.replace(context, changes=context.changes[:2])
    assert [one.point.name for one in edit(config(every=2), odd)] == ["edits-2", "final"]
    assert [one.cost["edits"] for one in edit(config(every=3), odd)] == [3]


def test_a_point_is_the_model_as_it_was_then(context: CellContext) -> None:
    found = []
    for one in edit(config(every=2, batch=1), context):
        found.append(
            said(one.respondent, "capital of France?", "日本的貨幣？", "who wrote Hamlet?", "capital of Japan?")
        )
    assert found == [["Tokyo", "玉山", "Shakespeare", "Tokyo"], ["Paris", "玉山", "hi", "Paris"]]


def test_batches_are_as_asked(context: CellContext, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []
    apply = EditSession.apply

    def counted(self: EditSession, edits: Any, editor: Any, **options: Any) -> Any:
        made = apply(self, edits, editor, **options)
        sizes.append([len(one.edits) for one in made])
        return made

    monkeypatch.setattr(EditSession, "apply", counted)
    for wanted, expected in (
        ({}, [[4]]),
        ({"batch": 3}, [[3, 1]]),
        ({"every": 2}, [[2], [2]]),
        ({"every": 2, "batch": 1}, [[1, 1], [1, 1]]),
    ):
        sizes.clear()
        list(edit(config(**wanted), context))
        assert sizes == expected, wanted
    for wanted, expected in (({}, [[2], [1], [1]]), ({"batch": 1}, [[1, 1], [1], [1]])):
        sizes.clear()
        list(edit(config(**wanted), dataclasses.replace(context, sequence=1)))
        assert sizes == expected, wanted


def test_one_change_after_another(context: CellContext) -> None:
    made = list(edit(config(), dataclasses.replace(context, sequence=1)))
    assert [(one.point.name, one.changes) for one in made] == [("edits-2", 1), ("edits-3", 2), ("final", 3)]
    made = list(edit(config(), dataclasses.replace(context, sequence=2)))
    assert [(one.point.name, one.changes) for one in made] == [("edits-3", 2), ("final", 3)]
    made = list(edit(config(), dataclasses.replace(context, sequence=5)))
    assert [(one.point.name, one.changes) for one in made] == [("final", 3)]


def test_the_time_of_exams_is_not_its_own(context: CellContext, monkeypatch: pytest.MonkeyPatch) -> None:
    spent, exams_s = [], 0.0
    now = time.monotonic
    monkeypatch.setattr("posttrain.studies.methods.edit.time.monotonic", lambda: now() + exams_s)
    for one in edit(config(every=1), context):
        spent.append(one.cost["train_s"])
        exams_s += 1000.0
    assert len(spent) == 4
    assert 0 < spent[0] < spent[1] < spent[2] < spent[3] < 1000


def test_what_was_examined_is_written_again_and_not_offered(context: CellContext) -> None:
    whole = list(edit(config(every=2), context))
    again = dataclasses.replace(context, examined=lambda point: point == Point("edits", 2))
    (end,) = edit(config(every=2), again)
    assert isinstance(end.respondent, ModelRespondent)
    assert isinstance(whole[-1].respondent, ModelRespondent)
    assert end.respondent.fingerprint == whole[-1].respondent.fingerprint
    assert end.cost["edits"] == 4


def test_a_product_is_a_folder_of_edits(context: CellContext) -> None:
    kept = dataclasses.replace(context, keep="final")
    first, end = edit(config(every=2), kept)
    assert first.product is None
    assert end.product == context.folder / "model"
    assert [row["answer"] for row in read_edits(end.product)] == ["Tokyo", "玉山", "hi", "Paris"]
    again = ModelRespondent(load_model(str(end.product), device="cpu"))
    assert isinstance(end.respondent, ModelRespondent)
    assert again.fingerprint == end.respondent.fingerprint


def test_second_moments_are_of_the_studys_replay_without_prompts_of_the_exam(
    context: CellContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encode_all(
        [Conversation((Message("user", f"hello {n} " * 9), Message("assistant", "hi " * 9)), "old") for n in range(9)],
        context.bench.before.tokenizer,
        max_length=512,
    ).rows
    memit = {"kind": "memit", "layers": [0], "forms": ["chat"], "contexts": 0, "target": {"steps": 2}}
    asked: list[Any] = []

    def replay(*given: Any) -> Any:
        asked.append(given)
        return rows

    for forbidden in ({"hello"}, {"hello"}, {"hi"}):
        bench = bench_of(tmp_path, frozenset(forbidden))
        monkeypatch.setattr(bench, "replay", replay)
        list(edit(config(editor=memit), dataclasses.replace(context, bench=bench)))
    assert asked == [(SelfReplayConfig(), 0, 512)] * 2  # the second is in the cache


def test_a_seed_of_the_cell_reaches_the_editor(context: CellContext) -> None:
    prints = []
    for seed in (0, 0, 1):
        (end,) = edit(config(editor={**TOGETHER, "steps": 2, "rows": 1}), dataclasses.replace(context, seed=seed))
        assert isinstance(end.respondent, ModelRespondent)
        prints.append(end.respondent.fingerprint)
    assert prints[0] == prints[1] != prints[2]


# ---- in a study ------------------------------------------------------------------------------------------------------


def test_each_change_is_a_cell_of_its_own(study: Callable[..., Path]) -> None:
    path = study()
    outcome, _ = go(path)
    assert outcome.failed == []
    assert lines(path) == [("final", name) for name in CHANGES]
    assert reliability(path) == [1.0, 1.0, 1.0]
    assert [c["cost"]["edits"] for c in results(path)["cells"]] == [2, 1, 1]
    assert len({c["fingerprint"] for c in results(path)["cells"]}) == 3
    card = (path.parent / "run" / results(path)["cells"][0]["folder"] / "card.md").read_text(encoding="utf-8")
    assert "2 edits by ft_m" in card
    assert "loss on other texts: " in card
    assert go(path)[0].ran == 0  # nothing twice


def test_changes_together_are_one_model(study: Callable[..., Path]) -> None:
    path = study(changes_as="together", methods=[{**EDIT, "every": 2, "batch": 1}])
    assert go(path)[0].failed == []
    assert lines(path) == [(point, name) for point in ("edits-2", "final") for name in CHANGES]
    assert reliability(path) == [1.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert len({c["fingerprint"] for c in results(path)["cells"]}) == 2


def test_changes_in_sequence_are_examined_on_all_that_was_written(study: Callable[..., Path]) -> None:
    path = study(changes_as={"sequence": 1})
    assert go(path)[0].failed == []
    assert lines(path) == [
        *[("edits-2", "france"), ("edits-3", "france"), ("edits-3", "hamlet")],
        *[("final", name) for name in CHANGES],
    ]
    assert reliability(path) == [1.0, 1.0, 1.0, 0.5, 1.0, 1.0]  # Japan undoes what was there of France
    (points,) = written_of(read_run(path.parent / "run")).values()
    assert [(one.edits, one.newly, one.all) for one in points] == [(2, 1.0, 1.0), (3, 1.0, 1.0), (4, 1.0, 2.5 / 3)]


def kept_files(path: Path) -> dict[str, bytes]:
    """The files of the edits that the study has kept."""
    (weights,) = {c["weights"] for c in results(path)["cells"] if c["weights"]}
    return {one.name: one.read_bytes() for one in sorted((path.parent / "run" / weights).iterdir())}


@pytest.mark.parametrize("stop_at", [*(1, 3), *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_a_stopped_study_goes_on(study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    """Stopped before or after any exam, it ends with the same scores and the same bytes."""
    path = study(changes=[FRANCE, "changes/japan.yaml"], changes_as={"sequence": 1}, keep="final")
    go(path)
    expected = [(c["checkpoint"], c["change"], c["scores"], c["fingerprint"]) for c in results(path)["cells"]]
    whole = kept_files(path)
    (path.parent / "run").rename(path.parent / "first")
    take = stopping_at(monkeypatch, stop_at)
    with pytest.raises(Interrupted):
        go(path)
    taken: list[str] = []

    def counted(self: Examiner, changes: Any, respondent: Any, checkpoint: str, *more: Any, **options: Any) -> Any:
        taken.append(checkpoint)
        return take(self, changes, respondent, checkpoint, *more, **options)

    monkeypatch.setattr(Examiner, "take", counted)
    assert go(path)[0].failed == []
    found = [(c["checkpoint"], c["change"], c["scores"], c["fingerprint"]) for c in results(path)["cells"]]
    assert found == expected
    assert kept_files(path) == whole
    assert taken == ["edits-2", "final"][(stop_at - 1) // 2 :]


def test_a_chain_of_editing_and_training(study: Callable[..., Path]) -> None:
    chain = {"name": "chain", "steps": [{**EDIT, "every": 1}, OTHER]}
    path = study(changes=FRANCE, methods=[chain], keep="final")
    assert go(path)[0].failed == []
    cells = {c["checkpoint"]: c for c in results(path)["cells"]}
    assert list(cells) == ["1-edit.edits-1", "after-1-edit", "final"]
    assert [one["scores"]["reliability"] for one in cells.values()][:2] == [0.5, 1.0]
    trained = ModelRespondent(load_model(str(path.parent / "run" / cells["final"]["weights"]), device="cpu"))
    assert trained.fingerprint == cells["final"]["fingerprint"] != cells["after-1-edit"]["fingerprint"]
    assert said(trained, "good night?") == ["hi"]


def test_an_edit_starts_from_what_was_trained(study: Callable[..., Path]) -> None:
    """Its base is what the training has left, and what was learned there is nothing to edit."""
    taught = {**OTHER, "name": "taught", "targets": True}
    methods = [taught, {**EDIT, "start": "taught"}]
    outcome, _ = go(study(changes="changes/hamlet.yaml", methods=methods))
    (failed,) = outcome.failed
    assert failed.first.method == "edit"
    assert "the model says 'hi' already; there is nothing to edit" in failed.error
    methods[0] = {**taught, "targets": False}
    path = study(changes="changes/hamlet.yaml", methods=methods, keep="final")
    assert go(path)[0].failed == []
    (end,) = [c for c in results(path)["cells"] if c["method"] == "edit"]
    edited = ModelRespondent(load_model(str(path.parent / "run" / end["weights"]), device="cpu"))
    assert edited.fingerprint == end["fingerprint"]
    assert said(edited, "good night?", "who wrote Hamlet?") == ["hi", "hi"]


def test_harm_is_a_failed_cell_with_its_figures(study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.editing.session.HARM_NATS", -9.0)  # no edit helps that much
    path = study(changes=FRANCE, methods=[EDIT, {**EDIT, "name": "forced", "force": True}, {"kind": "prompt"}])
    outcome, listener = go(path)
    told = (
        r"france.yaml:\d \(change france, target \d\): the edit would break the model: the loss on other texts rises "
        r"from \d\.\d\d to \d\.\d\d nats per token, its change is [\d.]+ of the weights' norm; edit another layer"
    )
    (failed,) = outcome.failed
    assert failed.first.method == "edit"
    assert re.search(told, failed.error)
    (cell,) = [c for c in results(path)["cells"] if c["method"] == "edit"]
    assert cell["status"] == "failed"
    assert re.search(told, cell["error"])
    assert reliability(path, "forced") == [1.0]
    assert any("; written all the same (force)" in line for line in listener.lines)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_targets_that_are_no_edits_are_named(study: Callable[..., Path]) -> None:
    path = study(changes=FRANCE)
    file = path.parent / FRANCE
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("玉山,", '"玉山\\n高",'), encoding="utf-8")
    outcome, _ = go(path)
    (failed,) = outcome.failed
    assert failed.error.splitlines() == [
        f"{file}:4 (change france, target 2): the answer has several lines; an editor writes one short statement; give "
        "one line, or teach it with kind: train",
    ]


def test_what_the_model_says_already_is_no_edit(context: CellContext, tmp_path: Path) -> None:
    file = tmp_path / "changes" / "known.yaml"
    file.write_text(
        'name: known\ntarget:\n  - {prompt: "capital of France?", answer: Paris, subject: France}\n', encoding="utf-8"
    )
    known = dataclasses.replace(context, changes=tuple(load_changes("changes/known.yaml", tmp_path)))
    told = re.escape(f"{file}:3 (change known, target 1): the model says 'Paris' already; there is nothing to edit")
    with pytest.raises(ConfigError, match=told):
        next(edit(config(), known))


def test_every_is_for_changes_that_are_taught_together(context: CellContext) -> None:
    with pytest.raises(ConfigError, match=r"method 'edit': every: changes are taught one after another"):
        next(edit(config(every=2), dataclasses.replace(context, sequence=1)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 3, "batch": 2}, r"every \(3\) must be a multiple of batch \(2\)"),
        ({"every": 0}, "every: input should be greater than 0, got 0"),
        ({"batch": -1}, "batch: input should be greater than 0, got -1"),
        ({"editor": "memitt"}, "unknown editor 'memitt'; did you mean 'memit'?"),
        ({"editor": {"kind": "memit", "wieght": 1}}, "unknown key 'wieght'; did you mean 'weight'?"),
        ({"inputs": {"base": "pocket:base"}}, "takes no input 'base'"),
        ({"editors": "memit"}, "unknown key 'editors'; did you mean 'editor'?"),
    ],
)
def test_settings_that_cannot_be_are_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_an_editor_must_be_named(study: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="editor"):
        load_yaml(study(methods=[{"kind": "edit"}]), Study)


def test_a_layer_that_is_not_there(context: CellContext) -> None:
    with pytest.raises(
        ConfigError, match="editor ft_m: layers: there is no layer 2: LlamaForCausalLM has layers 0 to 1"
    ):
        next(edit(config(editor={**EDITOR, "layers": [2]}), context))
