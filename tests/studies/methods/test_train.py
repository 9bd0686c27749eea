from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from posttrain.config.change import Change
from posttrain.config.load import check
from posttrain.data.records import Completion, Conversation, Message, Text
from posttrain.errors import ConfigError, DataError
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.fingerprint import weights_fingerprint
from posttrain.models.load import load_model
from posttrain.models.tensors import tensors_in
from posttrain.studies.bench import Bench
from posttrain.studies.candidates import END, CellContext
from posttrain.studies.config import Saves
from posttrain.studies.methods.train import extra_rows, train
from posttrain.studies.train_config import TrainMethodConfig, Work, seeded, settings_of
from posttrain.studies.train_rows import target_rows
from tests.talker import talker

CHANGE = Change.model_validate(
    {"name": "france", "target": [{"prompt": "capital of France?", "answer": ["Tokyo", "東京"]}]}
)


def config(**fields: Any) -> TrainMethodConfig:
    optimizer = {"learning_rate": 3e-3, "max_steps": 6}
    return check({"kind": "train", "optimizer": optimizer, **fields}, TrainMethodConfig, "test")


def bench_of(folder: Path, forbidden: frozenset[str] = frozenset()) -> Bench:
    return Bench(str(talker()), base=folder, forbidden=forbidden, say=lambda line: None)


def context_of(bench: Bench, folder: Path, change: Change = CHANGE) -> CellContext:
    return CellContext(changes=(change,), seed=0, folder=folder, bench=bench, untouched=bench)


class Trained(NamedTuple):
    """The candidate at the end."""

    respondent: ModelRespondent
    cost: Mapping[str, float]
    product: Path | None
    metrics: list[Any]
    notes: Sequence[str]


def trained(chosen: TrainMethodConfig, cell: CellContext) -> Trained:
    (end,) = [candidate for candidate in train(chosen, cell) if candidate.point == END]
    assert isinstance(end.respondent, ModelRespondent)
    return Trained(end.respondent, end.cost, end.product, metrics(cell), end.notes)


def metrics(cell: CellContext) -> list[Any]:
    """The lines of the cell's metrics.jsonl."""
    return [json.loads(line) for line in cell.metrics.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return bench_of(tmp_path, frozenset({"who wrote Hamlet?"}))


@pytest.fixture
def context(bench: Bench, tmp_path: Path) -> CellContext:
    return context_of(bench, tmp_path / "cell")


def test_targets_become_rows_with_their_first_answer() -> None:
    change = Change.model_validate(
        {
            "name": "x",
            "target": [
                {"prompt": "a?", "answer": ["b", "c"]},
                {
                    "prompt": [
                        {"role": "user", "content": "hi"},
                        {"role": "assistant", "content": "hello"},
                        {"role": "user", "content": "d?"},
                    ],
                    "answer": "e",
                },
            ],
        }
    )
    rows = target_rows([change])
    assert rows[0] == Conversation((Message("user", "a?"), Message("assistant", "b")), "x: target 1")
    assert [m.supervised for m in rows[1].messages] == [False, False, False, True]


def test_training_learns_and_leaves_the_model_alone(context: CellContext, bench: Bench) -> None:
    before = weights_fingerprint(bench.loaded.model)
    steps: list[Any] = []
    made = trained(config(), dataclasses.replace(context, on_step=steps.append))
    assert made.respondent.generate(["capital of France?"]) == ["Tokyo"]
    assert context.bench.before.generate(["capital of France?"]) == ["Paris"]
    assert weights_fingerprint(bench.loaded.model) == before
    assert len(steps) == len(metrics(context)) == made.cost["steps"] == 6
    assert made.cost["tokens"] > 0
    assert made.product is None
    assert [path.name for path in context.folder.iterdir()] == ["metrics.jsonl"]


def test_steps_are_written_as_they_happen_and_once(context: CellContext) -> None:
    """A kill in step 5 leaves its lines; the run that goes on after step 4 writes none of them twice."""
    seen: list[Any] = []

    class Killed(BaseException):
        pass

    def stops(entry: Any) -> None:
        seen.append(entry["step"])
        if entry["step"] == 5:
            raise Killed

    surroundings = dataclasses.replace(
        context, resumable=True, saves=Saves(every=2), on_step=stops, examined=lambda point: True
    )
    with pytest.raises(Killed):
        trained(config(), surroundings)
    assert [entry["step"] for entry in metrics(context)] == seen == [1, 2, 3, 4, 5]
    with context.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "loss_na')  # a line cut short
    trained(config(), dataclasses.replace(surroundings, on_step=lambda entry: seen.append(entry["step"])))
    assert seen == [1, 2, 3, 4, 5, 5, 6]
    assert [entry["step"] for entry in metrics(context)] == [1, 2, 3, 4, 5, 6]


def test_extra_rows_are_learned_too(context: CellContext, tmp_path: Path) -> None:
    rows = [{"prompt": "capital of Italy?", "completion": "Rome"}]
    (tmp_path / "france.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    wanted = config(data="{change}.jsonl", optimizer={"learning_rate": 6e-3, "max_steps": 20})
    assert wanted.files("france") == ["france.jsonl"]
    made = trained(wanted, context)
    assert made.respondent.generate(["capital of France?", "capital of Italy?"]) == ["Tokyo", "Rome"]


def test_rows_that_the_exam_asks_are_named(context: CellContext, tmp_path: Path) -> None:
    rows = [
        {"prompt": "capital of Italy?", "completion": "Rome"},
        {"prompt": "WHO wrote Hamlet", "completion": "Marlowe"},
        {"text": "who wrote Hamlet?"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        extra_rows(config(data="rows.jsonl"), context)
    assert [str(p).split(";")[0] for p in caught.value.problems] == [
        f"{tmp_path / 'rows.jsonl'}:2: this row's question is asked by the exam"
    ]
    free = context_of(bench_of(tmp_path), context.folder)
    allowed = extra_rows(config(data="rows.jsonl"), free)
    assert [type(row) for row in allowed] == [Completion, Completion, Text]


def test_replayed_rows_reach_the_training(context: CellContext, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.data.chat import encode_all

    old = [Conversation((Message("user", "hello"), Message("assistant", "hi")), "old")]
    asked: list[Any] = []

    def replay(*what: Any) -> Any:
        asked.append(what)
        return encode_all(old, context.bench.before.tokenizer, max_length=64).rows

    monkeypatch.setattr(context.bench, "replay", replay)
    trained(config(replay={"kind": "self", "share": 0.5}), dataclasses.replace(context, seed=3))
    assert [(what[0].kind, what[1], what[2]) for what in asked] == [("self", 3, 512)]
    share = sum(entry["old_share"] for entry in metrics(context)) / 6
    assert share == pytest.approx(0.5, abs=0.15)


def test_weights_are_kept_when_asked(context: CellContext) -> None:
    made = trained(config(tuner="lora"), dataclasses.replace(context, keep="final"))
    assert made.product == context.folder / "training" / "model"
    again = ModelRespondent(load_model(str(made.product), device="cpu"))
    assert again.generate(["capital of France?", "hello"]) == made.respondent.generate(["capital of France?", "hello"])


@pytest.mark.parametrize(("asked", "stored"), [("auto", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_weights_are_examined_and_kept_in_the_precision_asked_for(
    context: CellContext, asked: str, stored: str
) -> None:
    made = trained(config(save_dtype=asked), dataclasses.replace(context, keep="final"))
    assert made.product is not None
    assert {one.dtype for one in tensors_in(made.product / "model.safetensors").values()} == {stored}
    assert isinstance(made.respondent, ModelRespondent)
    kept = load_model(str(made.product), device="cpu").model.state_dict()
    examined = made.respondent.model.state_dict()
    assert all(torch.equal(examined[key], kept[key]) for key in kept)
    exact = trained(config(), dataclasses.replace(context, folder=context.folder / "exact")).respondent
    assert (exact.fingerprint == made.respondent.fingerprint) == (asked == "auto")


def test_what_a_training_takes_reaches_it(context: CellContext) -> None:
    asked = {"precision": "bf16", "save_dtype": "float16", "max_length": 99}
    settings = settings_of(config(**asked), context, "m").model_dump()
    assert {key: settings[key] for key in asked} == asked
    with pytest.raises(ConfigError, match="save_dtype"):
        config(save_dtype="int8")


def test_a_finished_training_is_not_trained_again(context: CellContext) -> None:
    kept = dataclasses.replace(context, keep="final")
    first = trained(config(), kept)
    steps: list[Any] = []
    again = trained(config(), dataclasses.replace(kept, on_step=steps.append))
    assert steps == []
    assert again.respondent.fingerprint == first.respondent.fingerprint


def test_seeds_reach_the_random_parts_of_a_tuner(context: CellContext) -> None:
    lora = config(tuner="lora").tuner
    assert seeded(lora, 5).model_dump()["seed"] == 5
    assert seeded(config(tuner={"kind": "lora", "seed": 1}).tuner, 5).model_dump()["seed"] == 1
    assert seeded(config(tuner="full").tuner, 5) == config(tuner="full").tuner
    one, other = (trained(config(tuner="lora"), dataclasses.replace(context, seed=seed)) for seed in (0, 1))
    assert one.respondent.fingerprint != other.respondent.fingerprint


def test_work_is_counted_with_replay() -> None:
    assert config().work(30) == Work(6, 180)
    assert config(replay={"kind": "self", "share": 0.75}).work(30) == Work(6, 720)
    assert config(optimizer={"epochs": 2}).work(30) == Work(2, 60)


def test_a_row_longer_than_allowed_is_refused(context: CellContext) -> None:
    with pytest.raises(DataError, match="target 1"):
        trained(config(max_length=4), context)


def test_a_wrong_key_has_its_kind(context: CellContext) -> None:
    with pytest.raises(ConfigError, match="unknown key 'sharre'; did you mean 'share'"):
        config(replay={"kind": "self", "sharre": 0.5})


def test_the_global_random_state_is_not_needed(context: CellContext) -> None:
    torch.manual_seed(1)
    one = trained(config(tuner="lora"), context).respondent.fingerprint
    torch.manual_seed(2)
    assert trained(config(tuner="lora"), context).respondent.fingerprint == one
