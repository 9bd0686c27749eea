"""Penalties through `train()`: once per step, before clipping, however a step is cut; resumed; and what they are for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from posttrain.data.chat import Encoded
from posttrain.errors import ConfigError, Interrupted, MissingError
from posttrain.models.load import LoadedModel
from posttrain.retention.penalty._kept import Kept, leave
from posttrain.training.penalties import Penalties
from posttrain.training.run import train
from posttrain.training.steps import RowPlan, StepRows
from tests.retention.penalty.test_formulas import FORMULAS, Named
from tests.training.test_resume import assert_same_run, signal_in_step
from tests.training.test_resume import run as resumable
from tests.training.test_resume import settings as resumable_settings
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights

REMEMBERS = ["ewc", "online_ewc", "mas", "si"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))


def doubled(pico_path: PicoPath) -> LoadedModel:
    loaded = load(pico_path)
    loaded.model.double().requires_grad_(True)
    return loaded


def importances(model: nn.Module) -> Named:
    draw = torch.Generator().manual_seed(4)
    return {n: 3 * torch.rand(p.shape, generator=draw, dtype=torch.float64) for n, p in model.named_parameters()}


# ---- once per step, before clipping ------------------------------------------------------------------------------------

STEPS = [[0, 1, 2, 3], [4], [0, 1, 2, 3]]
CUTS = {
    "one large batch": [[[0, 1, 2, 3]], [[4]], [[0, 1, 2, 3]]],
    "accumulated": [[[0], [1], [2], [3]], [[4]], [[3, 1], [2], [0]]],  # the second step is a partial window
}
CLIP = 0.1


def reference(loaded: LoadedModel, kind: str, data: list[Encoded]) -> tuple[Named, list[float]]:
    """A plain loop: mean loss over the step's tokens plus the formula, autograd, clip, AdamW."""
    model, formula = loaded.model, FORMULAS[kind][1]
    named: Named = dict(model.named_parameters())
    start = {n: p.detach().clone() for n, p in named.items()}
    weigh = importances(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0)
    values, norms = [], []
    for step in STEPS:
        nats: Tensor = torch.zeros((), dtype=torch.float64)
        tokens = 0
        for i in step:
            labels = torch.tensor(data[i].labels)
            logits = model(torch.tensor([data[i].input_ids])).logits[0, :-1]
            nats = nats + cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
            tokens += int((labels[1:] != -100).sum())
        penalty = formula(named, start, weigh)
        torch.autograd.backward(nats / tokens + penalty)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(penalty.detach()))
    assert max(norms) > CLIP  # or a penalty added after the clip would do as well
    return weights(model), values


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("cut", CUTS)
def test_a_step_is_a_step_however_it_is_cut(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, cut: str
) -> None:
    data = rows(5)
    expected, values = reference(doubled(pico_path), kind, data)

    def plan(self: RowPlan) -> Iterator[StepRows]:
        return iter([StepRows(micro, i + 1.0) for i, micro in enumerate(CUTS[cut])])

    monkeypatch.setattr(RowPlan, "__iter__", plan)
    loaded = doubled(pico_path)
    leave(tmp_path / "f", kind, Kept(importances(loaded.model), weights(loaded.model)))
    penalty = {"kind": kind, "scale": "absolute", **FORMULAS[kind][0]} | ({"earlier": "f"} if kind in REMEMBERS else {})
    optimizer = {"max_steps": 3, "epsilon": 1e-3, "learning_rate": 1e-2, "max_grad_norm": CLIP}
    result = train(config(penalty=penalty, optimizer=optimizer), loaded=loaded, rows=data, base=tmp_path)
    assert [e[f"penalty_{kind}"] for e in result.history] == pytest.approx(values, rel=1e-5)
    assert values[-1] > 1e-4
    found = weights(result.model)
    assert max(float((found[n] - expected[n]).abs().max()) for n in found) < 1e-6


def test_two_penalties_add_up_and_one_twice_is_refused(pico_path: PicoPath) -> None:
    both: list[Any] = [{"kind": "l2", "strength": 0.1}, {"kind": "l1", "strength": 0.01}]
    result = train(config(penalty=both, optimizer={"max_steps": 1}), loaded=load(pico_path), rows=rows(2))
    assert {"penalty_l1", "penalty_l2"} <= result.history[0].keys()
    with pytest.raises(ValueError, match="l2 is named twice"):
        config(penalty=["l2", {"kind": "l2", "strength": 3.0}])


# ---- resumed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_resumed_run_is_the_same_run(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Weights, values, and what is left for the next task (SI's running sums, too), bit for bit."""
    (tmp_path / "old.jsonl").write_text('{"prompt": "a", "completion": "b c"}\n{"prompt": "d", "completion": "e"}\n')
    penalty = {"kind": kind} | ({"data": "old.jsonl"} if kind in {"ewc", "online_ewc", "mas"} else {})
    chosen = resumable_settings(penalty=penalty, tuner={"kind": "lora", "rank": 2})
    straight = resumable(pico_path, tmp_path / "straight", chosen, base=tmp_path)
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3)
        with pytest.raises(Interrupted):
            resumable(pico_path, tmp_path / "run", chosen, base=tmp_path)
    assert_same_run(straight, resumable(pico_path, tmp_path / "run", chosen, base=tmp_path))
    if kind in REMEMBERS:
        one, other = (load_file(tmp_path / run / "penalties" / f"{kind}.safetensors") for run in ("straight", "run"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one)
        assert any(t.any() for k, t in one.items() if k.startswith("importance/"))
    values = [e[f"penalty_{kind}"] for e in straight.history if "loss_nats" in e]
    assert values[-1] == 0 if kind == "si" else values[-1] > 0  # SI has nothing to hold in a first task


# ---- what the earlier task has left -----------------------------------------------------------------------------------


def test_the_earlier_task_had_no_such_penalty(pico_path: PicoPath, tmp_path: Path) -> None:
    train(config(optimizer={"max_steps": 1}), loaded=load(pico_path), rows=rows(2), output=tmp_path / "1")
    with pytest.raises(MissingError, match="nothing was left here for si"):
        train(config(penalty="si"), loaded=load(pico_path), rows=rows(2), earlier=tmp_path / "1")


@pytest.mark.parametrize("kind", REMEMBERS)
def test_an_adapter_goes_on(pico_path: PicoPath, tmp_path: Path, kind: str) -> None:
    """The adapter of the first task is taken up, not merged: its parameters are those that the penalty knows."""
    (tmp_path / "old.jsonl").write_text('{"prompt": "a", "completion": "b c"}\n{"prompt": "d", "completion": "e"}\n')
    penalty = {"kind": kind} | ({} if kind == "si" else {"hold_start": False})
    chosen = config(penalty=penalty, tuner={"kind": "lora", "rank": 2}, optimizer={"max_steps": 3})
    train(chosen, loaded=load(pico_path), rows=rows(3), output=tmp_path / "1")
    told = Remembers()
    result = train(
        chosen,
        loaded=load(pico_path),
        rows=rows(3, seed=5),
        output=tmp_path / "2",
        earlier=tmp_path / "1",
        adapter=tmp_path / "1" / "model",
        progress=told,
    )
    assert any("holds what 1 earlier tasks have left" in line for line in told.said)
    values = [e[f"penalty_{kind}"] for e in result.history]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values[2] > 0
    with pytest.raises(ConfigError, match="did not end where this one starts"):
        train(chosen, loaded=load(pico_path), rows=rows(3), earlier=tmp_path / "1")  # a second adapter


def test_another_rank_than_the_earlier_task(pico_path: PicoPath, tmp_path: Path) -> None:
    first = config(penalty="si", tuner={"kind": "lora", "rank": 2}, optimizer={"max_steps": 1})
    train(first, loaded=load(pico_path), rows=rows(2), output=tmp_path / "1")
    second = first.model_copy(update={"tuner": config(tuner={"kind": "lora", "rank": 4}).tuner})
    with pytest.raises(ConfigError, match=r"had the shape \(2, 32\) and has \(4, 32\) now"):
        train(second, loaded=load(pico_path), rows=rows(2), earlier=tmp_path / "1")


@pytest.mark.parametrize(
    ("kind", "around", "cause"),
    [
        ("l2", {"deepspeed": True, "sharded": False}, "DeepSpeed keeps gradients to itself"),
        ("si", {"deepspeed": False, "sharded": True}, "si measures and saves whole parameters"),
        ("l2", {"deepspeed": False, "sharded": True}, None),
        ("si", {"deepspeed": False, "sharded": False}, None),
    ],
)
def test_what_is_out_of_reach(
    pico_path: PicoPath,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    around: dict[str, bool],
    cause: str | None,
) -> None:
    """As `accelerate launch` would set the Trainer up."""
    check = Penalties.check

    def told(self: Penalties, *, deepspeed: bool, sharded: bool, leaves: bool) -> None:
        assert (deepspeed, sharded, leaves) == (False, False, True)
        check(self, leaves=leaves, **around)

    monkeypatch.setattr(Penalties, "check", told)
    chosen = config(penalty=kind, optimizer={"max_steps": 1})
    if cause is None:
        train(chosen, loaded=load(pico_path), rows=rows(2), output=tmp_path / "run")
    else:
        with pytest.raises(ConfigError, match=cause):
            train(chosen, loaded=load(pico_path), rows=rows(2), output=tmp_path / "run")


def test_shards_are_found_in_the_parameters_places() -> None:
    model = nn.Linear(2, 2)
    penalties = Penalties({}, model, ["weight"])
    model.weight = nn.Parameter(torch.zeros(2, 2))
    assert penalties.trainable == {"weight": model.weight}
