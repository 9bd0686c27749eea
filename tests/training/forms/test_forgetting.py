"""Forget rows and retain rows in training: the step's loss row by row, the two sets checked, what is said."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from posttrain.config.base import Config
from posttrain.data.chat import Encoded
from posttrain.data.records import Conversation, Message
from posttrain.errors import ConfigError, DataError, Interrupted
from posttrain.objectives.npo import NpoConfig
from posttrain.objectives.rmu import RmuConfig, direction
from posttrain.training.batches import StepLoader
from posttrain.training.forms import form_of
from posttrain.training.run import TrainResult, train
from posttrain.training.steps import RowPlan, StepRows
from tests.training.tiny import PicoPath, Remembers, config, load, row, rows, weights

FORGET = rows(3, seed=1, name="forget.jsonl")
RETAIN = rows(4, seed=2, name="retain.jsonl")
REPLAY = {"kind": "file", "data": "retain.jsonl", "share": 0.5}
SMOOTH = {"epsilon": 1e-3, "learning_rate": 1e-2}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "grad_diff": {"kind": "grad_diff", "retain_weight": 0.5},
    "grad_diff kl": {"kind": "grad_diff", "retain": "kl"},
    "npo": {"kind": "npo", "beta": 0.7, "retain_weight": 2.0},
    "npo kl": {"kind": "npo", "retain": "kl"},
    "simnpo": {"kind": "simnpo"},
    "rmu": {"kind": "rmu", "layer": 0, "steering": 3.0, "alpha": 2.0},
    "rmu answer": {"kind": "rmu", "layer": 0, "steering": 3.0, "alpha": 2.0, "tokens": "answer"},
}


def plan(monkeypatch: pytest.MonkeyPatch, steps: list[list[list[int]]]) -> None:
    def planned(self: RowPlan) -> Iterator[StepRows]:
        return iter([StepRows(micro_batches, float(i + 1)) for i, micro_batches in enumerate(steps)])

    monkeypatch.setattr(RowPlan, "__iter__", planned)


def run(
    pico_path: PicoPath,
    objective: dict[str, Any],
    steps: int = 1,
    *,
    seen: Remembers | None = None,
    retain: list[Encoded] | None = RETAIN,
    output: Path | None = None,
    **settings: Any,
) -> TrainResult:
    loaded = load(pico_path)
    loaded.model.double()
    given = config(objective=objective, optimizer={**SMOOTH, "max_steps": steps}, **settings)
    return train(given, loaded=loaded, rows=FORGET, replay_rows=retain, progress=seen or Remembers(), output=output)


def nats_of(model: Any, one: Encoded) -> tuple[torch.Tensor, int]:
    """(negative log-likelihood of a row, its supervised tokens), alone and unpadded."""
    labels = torch.tensor(one.labels)[1:]
    logits = model(torch.tensor([one.input_ids])).logits[0, :-1]
    return cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), int((labels != -100).sum())


def by_rows(name: str, now: Any, before: Any) -> float:
    """A step's loss from rows one by one, as the papers write it."""
    objective = OBJECTIVES[name]
    forget, retain = [nats_of(now, r) for r in FORGET], [nats_of(now, r) for r in RETAIN]
    was = [nats_of(before, r)[0] for r in FORGET]
    weight: float = objective.get("retain_weight", 1.0)
    if name == "grad_diff":
        up = sum(float(n) for n, _ in forget) / sum(k for _, k in forget)
        return -up + weight * sum(float(n) for n, _ in retain) / sum(k for _, k in retain)
    if name == "npo":
        beta: float = objective["beta"]
        each = [-2 / beta * log(1 / (1 + torch.exp(-beta * (n - b)).item())) for (n, _), b in zip(forget, was)]
        return sum(each) / len(each) + weight * sum(float(n) / k for n, k in retain) / len(retain)
    if name == "simnpo":
        each = [-2 / 2.5 * log(1 / (1 + torch.exp(-2.5 * n / k).item())) for n, k in forget]
        return sum(each) / len(each) + sum(float(n) / k for n, k in retain) / len(retain)
    if name.startswith("rmu"):
        unit = direction(32, 0).double()
        sums = []
        for one in [*FORGET, *RETAIN]:
            ids = torch.tensor([one.input_ids])
            counted = torch.tensor(one.labels)[1:] != -100 if "answer" in name else torch.ones(len(one.labels) - 1) > 0
            states, base = (m(ids, output_hidden_states=True).hidden_states[1][0, :-1][counted] for m in (now, before))
            goal = base if one in RETAIN else 3.0 * unit
            sums.append(float((states - goal).pow(2).mean()))
        return sum(sums[:3]) / 3 + 2.0 * sum(sums[3:]) / 4
    kl, tokens, rowwise = 0.0, 0, []
    for one in RETAIN:
        asked = torch.tensor(one.labels)[1:] != -100
        p, q = (log_softmax(m(torch.tensor([one.input_ids])).logits[0, :-1][asked], -1) for m in (before, now))
        found = float((p.exp() * (p - q)).sum())
        kl, tokens = kl + found, tokens + int(asked.sum())
        rowwise.append(found / int(asked.sum()))
    if name == "grad_diff kl":
        return -sum(float(n) for n, _ in forget) / sum(k for _, k in forget) + kl / tokens
    each = [-20 * log(1 / (1 + torch.exp(-0.1 * (n - b)).item())) for (n, _), b in zip(forget, was)]
    return sum(each) / len(each) + sum(rowwise) / len(rowwise)


@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_steps_loss_is_that_of_its_rows(
    pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, name: str, tuner: str
) -> None:
    """After one step on all rows; new and old rows share micro batches."""
    everything = [[0, 3, 4], [5, 1], [2, 6]]
    plan(monkeypatch, [everything] * 2)
    untouched = load(pico_path).model.double()
    seen = Remembers()
    moved = run(pico_path, OBJECTIVES[name], 1, tuner=tuner).model
    run(pico_path, OBJECTIVES[name], 2, tuner=tuner, seen=seen)
    with torch.no_grad():
        first, second = by_rows(name, untouched, untouched), by_rows(name, moved, untouched)
    assert seen.entries[0]["loss_nats"] == pytest.approx(first, rel=1e-6)
    assert seen.entries[1]["loss_nats"] == pytest.approx(second, rel=1e-6)
    assert first != pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulated_equals_whole(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ends = []
    for cut in ([[0, 1, 2, 3, 4, 5, 6]], [[5], [0, 6], [1, 2], [3, 4]]):
        plan(monkeypatch, [cut] * 2)
        ends.append(weights(run(pico_path, OBJECTIVES[name], 2).model))
    assert max(float((ends[0][k] - ends[1][k]).abs().max()) for k in ends[0]) < 1e-12


@pytest.mark.parametrize("name", ["npo kl", "rmu"])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_stopped_run_goes_on_with_the_same_reference(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tuner: str
) -> None:
    """What a resumed run compares with is the model before training, not that of the checkpoint."""
    given: dict[str, Any] = {"tuner": tuner, "replay": REPLAY, "batch": {"tokens": 40}}
    whole, stopped, resumed = Remembers(), Remembers(), Remembers()
    end = run(pico_path, OBJECTIVES[name], 4, seen=whole, output=tmp_path / "whole", **given)
    make, made = StepLoader.make, []

    def making(self: StepLoader, planned: StepRows) -> Any:
        made.append(planned)
        if len(made) == 2:
            signal.raise_signal(signal.SIGINT)
        return make(self, planned)

    with monkeypatch.context() as patch:
        patch.setattr(StepLoader, "make", making)
        with pytest.raises(Interrupted):
            run(pico_path, OBJECTIVES[name], 4, seen=stopped, output=tmp_path / "cut", **given)
    other = run(pico_path, OBJECTIVES[name], 4, seen=resumed, output=tmp_path / "cut", **given)
    losses = [e["loss_nats"] for e in [*stopped.entries, *resumed.entries]]
    assert losses == pytest.approx([e["loss_nats"] for e in whole.entries], rel=1e-12)
    one, two = weights(end.model), weights(other.model)
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-12


def test_npo_knows_validation_rows_too(pico_path: PicoPath) -> None:
    seen = Remembers()
    loaded = load(pico_path)
    given = config(objective={"kind": "npo"}, optimizer={"max_steps": 1, "learning_rate": 1e-9}, keep_best=False)
    train(given, loaded=loaded, rows=FORGET, validation_rows=rows(2, seed=5), progress=seen)
    validated = next(e for e in seen.entries if "validation_loss_nats" in e)
    assert validated["validation_loss_nats"] == pytest.approx(20 * log(2), abs=1e-3)
    assert validated["validation_log_ratio"] == pytest.approx(0, abs=1e-4)


def test_ascent_forgets(pico_path: PicoPath) -> None:
    seen = Remembers()
    loaded = load(pico_path)
    train(
        config(objective="grad_ascent", optimizer={"max_steps": 5, "learning_rate": 1e-2}),
        loaded=loaded,
        rows=FORGET,
        progress=seen,
    )
    nll = [entry["forget_nll"] for entry in seen.entries]
    assert nll == sorted(nll)
    assert nll[-1] > nll[0] + 1
    assert [entry["loss_nats"] for entry in seen.entries] == pytest.approx([-n for n in nll])
    assert any("no floor" in line and "6.0 nats" in line for line in seen.said)  # ln 384 = 5.95


@pytest.mark.parametrize("kind", ["grad_ascent", "grad_diff"])
def test_no_warning_with_a_bound(pico_path: PicoPath, kind: str) -> None:
    seen = Remembers()
    run(pico_path, {"kind": kind, "max_nll": 6}, seen=seen, retain=RETAIN if kind == "grad_diff" else None)
    assert not any("no floor" in line for line in seen.said)


def test_rmu_says_how_long_the_states_are_and_moves_nothing_later(pico_path: PicoPath) -> None:
    seen = Remembers()
    before = weights(load(pico_path).model.double())
    after = weights(run(pico_path, OBJECTIVES["rmu"], 2, seen=seen, replay=REPLAY).model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("layers.0." in name for name in moved)
    assert not any("layers.1." in name for name in moved)
    assert any("the states after block 0 are" in line for line in seen.said)


@pytest.mark.parametrize(
    ("objective", "what", "asked"),
    [
        ("rmu", "measuring the states of the forget rows", FORGET),
        ("npo", "asking the model before training", FORGET),
        ("grad_diff", "", []),
    ],
)
def test_what_is_done_before_the_first_step_is_counted(
    pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, objective: str, what: str, asked: list[Encoded]
) -> None:
    monkeypatch.setattr("posttrain.models.meter.OFTEN_S", 0.0)
    seen = Remembers()
    longest = max(len(one.input_ids) for one in FORGET)
    run(pico_path, OBJECTIVES[objective], seen=seen, batch={"tokens": longest})  # a row at a time
    works = [work for work in seen.works if work.what == what]
    assert [(work.done, work.total, work.unit) for work in works] == [
        (done, len(asked), "rows") for done in ([0, 1, 2, 3] if asked else [])
    ]
    if asked:
        assert works[-1].ends
        assert works[-1].tokens == sum(len(one.input_ids) for one in asked)


@pytest.mark.parametrize(
    ("objective", "retain", "message"),
    [
        ({"kind": "grad_diff"}, None, "grad_diff needs a retain set"),
        ({"kind": "rmu", "layer": 0}, None, "rmu needs a retain set"),
        ({"kind": "grad_ascent"}, RETAIN, "use grad_diff"),
        ({"kind": "npo", "retain": "kl"}, None, "there are none"),
        ({"kind": "rmu", "layer": 1}, RETAIN, "give a layer from 0 to 0"),
    ],
)
def test_sets_that_do_not_fit(
    pico_path: PicoPath, objective: dict[str, Any], retain: list[Encoded] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(pico_path, objective, retain=retain)


def test_a_row_in_both_sets(pico_path: PicoPath) -> None:
    both = row(list(FORGET[1].input_ids), 2, "retain.jsonl:9")
    with pytest.raises(DataError, match=r"forget.jsonl:2.*retained by retain.jsonl:9"):
        run(pico_path, {"kind": "npo"}, retain=[*RETAIN, both])


@pytest.mark.parametrize("objective", [NpoConfig(), RmuConfig(layer=0)])
def test_a_change_names_what_is_forgotten(objective: Config) -> None:
    """The present answer is; one that is as wanted, or empty, is not."""

    def target(question: str) -> Conversation:
        return Conversation((Message("user", question), Message("assistant", "I don't know.")), "change.yaml")

    present = [" Rome ", "I don't know.", ""]
    made = form_of(objective).from_targets([target("Capital of Italy?"), target("b"), target("c")], lambda: present)
    assert made.skipped == 2
    (one,) = made.records
    assert [(m.role, m.content) for m in one.messages] == [("user", "Capital of Italy?"), ("assistant", "Rome")]
