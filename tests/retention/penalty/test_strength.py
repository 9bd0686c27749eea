"""Relative strengths: what lambda they become at the first step, by arithmetic; printed, kept, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from posttrain.config.load import check
from posttrain.errors import ConfigError, Interrupted
from posttrain.registry import kinds, load
from posttrain.retention.penalty._base import Memoryless, ParameterPenalty, StrengthConfig, copies
from posttrain.retention.penalty._kept import Kept, Quadratic
from posttrain.retention.penalty.l2_sp import L2Sp
from posttrain.training.config import TrainConfig
from posttrain.training.penalties import Penalties
from posttrain.training.run import train
from tests.training.test_resume import run as resumable
from tests.training.test_resume import settings as resumable_settings
from tests.training.test_resume import signal_in_step
from tests.training.tiny import PicoPath, Remembers, config, rows
from tests.training.tiny import load as loaded


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 4.0]))


def at_work(part: ParameterPenalty, model: nn.Module, strength: float, rate: float) -> Penalties:
    made = Penalties({"it": part}, model, ["w"], {"it": strength}, lambda text: None)
    made.learning_rate = rate
    return made


def start() -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([1.0, -2.0, 4.0])}


IMPORTANCE = {"w": torch.tensor([4.0, 1.0, 100.0])}
CASES: dict[str, tuple[ParameterPenalty, float]] = {
    # the gradient is (3, -1, 0): push 4; the third weight does not move, whatever its importance
    "ewc": (Quadratic(0.0, Kept(IMPORTANCE, start()), unit=0.5), 0.5 * 4 / (0.01 * (4 + 1))),
    "mas": (Quadratic(0.0, Kept(IMPORTANCE, start())), 0.5 * 4 / (2 * 0.01 * (4 + 1))),
    "l2_sp": (L2Sp(0.0, 0.0, start(), frozenset()), 0.5 * 4 / (0.01 * 2)),
    "l1": (Memoryless(0.0, torch.abs, torch.sign), 0.5 * 4 / 2),
    "l2": (Memoryless(0.0, lambda t: 0.5 * t.square(), lambda t: t), 0.5 * 4 / (1 + 2)),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_lambda_by_hand(kind: str, loss_scale: float) -> None:
    model, (part, expected) = Two(), CASES[kind]
    penalties = at_work(part, model, 0.5, rate=0.01)
    model.w.grad = torch.tensor([3.0, -1.0, 0.0]) * loss_scale
    assert penalties.add(loss_scale)["strength_it"] == pytest.approx(expected)
    model.w.grad = torch.tensor([50.0, 1.0, 1.0])  # chosen once: a later step changes nothing
    assert penalties.add(1.0)["strength_it"] == pytest.approx(expected)
    assert part.strength == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["ewc", "mas", "l2_sp"])
def test_after_one_step_the_spring_pulls_the_share_of_the_push(kind: str) -> None:
    """What the number means: along sign(g), |pull| after a step of eta is s x |push|."""
    model, (part, _) = Two(), CASES[kind]
    penalties = at_work(part, model, 0.3, rate=0.02)
    gradient = torch.tensor([3.0, -1.0, 0.0])
    model.w.grad = gradient.clone()
    penalties.add(1.0)
    with torch.no_grad():
        model.w.sub_(0.02 * gradient.sign())
    model.w.grad = torch.zeros(3)
    penalties.add(1.0)
    assert float((model.w.grad * -gradient.sign()).sum()) == pytest.approx(0.3 * float(gradient.abs().sum()), rel=1e-5)


def test_a_first_step_without_gradient_chooses_nothing_yet() -> None:
    model = Two()
    penalties = at_work(Quadratic(7.0, Kept(IMPORTANCE, {"w": torch.zeros(3)})), model, 0.5, rate=0.01)
    model.w.grad = torch.zeros(3)
    assert penalties.add(1.0) == {"penalty_it": 0.0}
    assert not model.w.grad.any()
    model.w.grad = torch.ones(3)
    assert penalties.add(1.0)["strength_it"] > 0


def test_units_cancel() -> None:
    """The same run with a loss, an importance and a rate in other units pulls as hard beside its loss."""
    shares = []
    for loss, unit, rate in ((1.0, 1.0, 0.01), (1e3, 1.0, 0.01), (1.0, 1e-6, 0.01), (1.0, 1.0, 1e-5)):
        model = Two()
        part = Quadratic(0.0, Kept({"w": IMPORTANCE["w"] * unit}, start()), unit=0.5)
        penalties = at_work(part, model, 0.1, rate)
        gradient = torch.tensor([3.0, -1.0, 2.0]) * loss
        model.w.grad = gradient.clone()
        penalties.add(1.0)
        with torch.no_grad():
            model.w.sub_(rate * gradient.sign())
        model.w.grad = torch.zeros(3)
        penalties.add(1.0)
        shares.append((model.w.grad / gradient).tolist())
    for share in shares[1:]:
        assert share == pytest.approx(shares[0], rel=5e-3)


# ---- configured --------------------------------------------------------------------------------------------------------


def test_every_penalty_on_parameters_has_a_scale() -> None:
    acting = [load("penalty", kind).config for kind in kinds("penalty")]
    assert all(issubclass(c, StrengthConfig) == (c.acts_on == "parameters") for c in acting)


@pytest.mark.parametrize(
    ("penalty", "says"),
    [
        ({"kind": "ewc", "strength": 3000}, "scale: absolute, which is what strengths were before"),
        ({"kind": "l2_sp", "scale": "absolute"}, "scale: absolute needs a strength"),
    ],
)
def test_what_cannot_be_meant_is_refused(penalty: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check({"model": "pico", "penalty": penalty}, TrainConfig, "台灣.yaml")


# ---- in a run ----------------------------------------------------------------------------------------------------------


def test_it_is_said_and_stands_in_every_line(pico_path: PicoPath) -> None:
    progress = Remembers()
    chosen = config(penalty=["l2_sp", {"kind": "l2", "scale": "absolute", "strength": 0.5}], optimizer={"max_steps": 3})
    result = train(chosen, loaded=loaded(pico_path), rows=rows(2), progress=progress)
    found = {entry["strength_l2_sp"] for entry in result.history}
    assert len(found) == 1
    assert any(t.startswith("l2_sp: strength 0.01") and f"{found.pop():.4g}" in t for t in progress.said), progress.said
    assert not any("strength_l2" in entry for entry in result.history)
    assert [entry["penalty_l2_sp"] > 0 for entry in result.history] == [False, True, True]


def test_a_resumed_run_keeps_what_the_first_step_chose(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = resumable_settings(penalty="l2_sp")
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3)
        with pytest.raises(Interrupted):
            resumable(pico_path, tmp_path / "run", chosen)
    result = resumable(pico_path, tmp_path / "run", chosen)
    assert len({entry["strength_l2_sp"] for entry in result.history if "loss_nats" in entry}) == 1


def test_starts_that_somebody_holds_are_not_copied() -> None:
    """An equal tensor of the untouched model is taken itself; a changed one, or the parameter's own, is copied."""
    trainable = {name: torch.nn.Parameter(torch.tensor([1.0, 2.0])) for name in "abcd"}
    held = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 3.0]), "c": trainable["c"].data}
    found = copies(trainable, held)
    assert found["a"].data_ptr() == held["a"].data_ptr()
    for name in "bcd":
        assert found[name].data_ptr() not in {trainable[name].data_ptr(), held.get("b", found[name]).data_ptr()}
        assert torch.equal(found[name], trainable[name])


def test_coarse_importances_stay_coarse() -> None:
    """In bfloat16 they take half the memory, and pull as they would in float32."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    kept = Kept({"w": torch.tensor([0.5, 2.0], dtype=torch.bfloat16)}, {"w": torch.zeros(2)})
    part = Quadratic(1.0, kept, unit=0.5)
    value = part.add_gradients({"w": weight})
    assert value == pytest.approx(0.5 * (0.5 * 1 + 2 * 4))
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.5, 4.0]
    assert kept.importance["w"].dtype == torch.bfloat16
