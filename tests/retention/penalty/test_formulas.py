"""Value and gradient of every penalty against its formula, differentiated by autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from posttrain.config.base import Config
from posttrain.errors import ConfigError, MissingError
from posttrain.registry import kinds, load
from posttrain.retention.penalty import _base
from posttrain.retention.penalty._base import ParameterPenalty, PenaltyContext
from posttrain.retention.penalty._kept import Kept, Quadratic, joined, leave, take_up
from tests.retention.penalty.conftest import on, parameters

Named = dict[str, Tensor]
Formula = Callable[[Named, Named, Named], Tensor]
"""(parameters, where they started, importances) -> the penalty."""

NEW_HEAD = "score.weight"
FORMULAS: dict[str, tuple[dict[str, float], Formula]] = {
    "l1": ({"strength": 0.7}, lambda p, s, i: 0.7 * sum_of(p, lambda n: p[n].abs())),
    "l2": ({"strength": 0.7}, lambda p, s, i: 0.35 * sum_of(p, lambda n: p[n] ** 2)),
    "l2_sp": (
        {"strength": 0.7, "head_strength": 0.2},
        lambda p, s, i: sum_of(p, lambda n: 0.1 * p[n] ** 2 if n == NEW_HEAD else 0.35 * (p[n] - s[n]) ** 2),
    ),
    "ewc": ({"strength": 0.7}, lambda p, s, i: 0.35 * sum_of(p, lambda n: i[n] * (p[n] - s[n]) ** 2)),
    "online_ewc": ({"strength": 0.7}, lambda p, s, i: 0.35 * sum_of(p, lambda n: i[n] * (p[n] - s[n]) ** 2)),
    "mas": ({"strength": 0.7}, lambda p, s, i: 0.7 * sum_of(p, lambda n: i[n] * (p[n] - s[n]) ** 2)),
    "si": ({"strength": 0.7}, lambda p, s, i: 0.7 * sum_of(p, lambda n: i[n] * (p[n] - s[n]) ** 2)),
}


def sum_of(named: Named, term: Callable[[str], Tensor]) -> Tensor:
    return torch.stack([term(name).sum() for name in named]).sum()


def importances(named: dict[str, nn.Parameter]) -> Named:
    draw = torch.Generator().manual_seed(9)
    return {n: torch.rand(p.shape, generator=draw, dtype=torch.float64) for n, p in named.items()}


def made(
    kind: str, settings: dict[str, float], context: PenaltyContext, trainable: dict[str, nn.Parameter]
) -> ParameterPenalty:
    """The penalty of a run that starts at `trainable`, with given importances where it has some."""
    entry = load("penalty", kind)
    config: Config = entry.config.model_validate({"kind": kind, **settings})
    path = context.base / f"{kind}.safetensors"
    center = {n: p.detach().clone() for n, p in trainable.items()}
    leave(path, kind, Kept(importances(trainable), center))
    fresh = frozenset({NEW_HEAD})
    penalty: ParameterPenalty = entry.function(config, on(context, trainable, earlier=path, fresh=fresh))
    return penalty


def test_every_penalty_on_parameters_has_its_formula_here() -> None:
    acting = {kind for kind in kinds("penalty") if load("penalty", kind).config.acts_on == "parameters"}
    assert acting == set(FORMULAS)


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_value_and_gradient(context: PenaltyContext, kind: str, scale: float) -> None:
    settings, formula = FORMULAS[kind]
    trainable = parameters()
    start = {n: p.detach().clone() for n, p in trainable.items()}
    penalty = made(kind, settings, context, trainable)
    with torch.no_grad():
        for p in trainable.values():
            p.add_(0.1 * torch.arange(p.numel(), dtype=p.dtype).view_as(p))
    leaves = {n: p.detach().clone().requires_grad_(True) for n, p in trainable.items()}
    expected = formula(leaves, start, importances(trainable))
    expected.backward()  # type: ignore[no-untyped-call]
    own = {n: torch.full_like(p, 5.0) for n, p in trainable.items()}
    for name, p in trainable.items():
        p.grad = None if name == "a.bias" else own[name].clone()  # None: nothing in this step touched it
    value = penalty.add_gradients(trainable, scale)
    assert value == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, p in trainable.items():
        gradient = leaves[name].grad
        assert p.grad is not None
        assert gradient is not None
        task = torch.zeros_like(p) if name == "a.bias" else own[name]
        torch.testing.assert_close(p.grad, task + scale * gradient)


@pytest.mark.parametrize("kind", sorted(set(FORMULAS) - {"l1", "l2"}))
def test_nothing_pulls_where_training_starts(context: PenaltyContext, kind: str) -> None:
    trainable = parameters()
    penalty = made(kind, {"head_strength": 0.0} if kind == "l2_sp" else {}, context, trainable)
    assert penalty.add_gradients(trainable) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in trainable.values())


def test_by_hand() -> None:
    """0.5 x (2 x (3 - 1)^2 + 1 x (5 - 5)^2 + rest 4) = 6; gradient 2 x 0.5 x 2 x (3 - 1) = 4."""
    weight = nn.Parameter(torch.tensor([3.0, 5.0]))
    kept = Kept({"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([1.0, 5.0])}, rest=4.0)
    assert Quadratic(0.5, kept).add_gradients({"w": weight}) == 6.0
    assert weight.grad is not None
    assert weight.grad.tolist() == [4.0, 0.0]


def test_several_tasks_kept_as_one_are_their_sum() -> None:
    here = {"w": nn.Parameter(torch.randn(20, dtype=torch.float64))}
    tasks = []
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        importance = torch.rand(20, generator=draw, dtype=torch.float64) * (torch.arange(20) % (seed + 2) > 0)
        tasks.append(Kept({"w": importance}, {"w": torch.randn(20, generator=draw, dtype=torch.float64)}))
    total = sum(Quadratic(0.5, task).add_gradients(here) for task in tasks)
    expected = here["w"].grad
    here["w"].grad = None
    one = joined(joined(tasks[0], tasks[1]), tasks[2])
    assert one.tasks == 3
    assert Quadratic(0.5, one).add_gradients(here) == pytest.approx(total)
    assert expected is not None
    torch.testing.assert_close(here["w"].grad, expected)


# ---- what an earlier task has left -------------------------------------------------------------------------------------

REMEMBER = ["ewc", "online_ewc", "mas", "si"]


@pytest.mark.parametrize("kind", REMEMBER)
def test_a_missing_file_is_named(context: PenaltyContext, kind: str) -> None:
    entry = load("penalty", kind)
    with pytest.raises(MissingError, match=f"nothing was left here for {kind}.*an output folder"):
        entry.function(entry.config(earlier="none.safetensors"), context)
    (context.base / "run").mkdir()
    with pytest.raises(MissingError, match=f"run/penalties/{kind}.safetensors"):
        entry.function(entry.config(earlier="run"), context)
    with pytest.raises(MissingError, match="gone"):
        entry.function(entry.config(), dataclasses.replace(context, earlier=context.base / "gone.safetensors"))


def test_the_stage_before_goes_before_the_configured_one(context: PenaltyContext, told: list[str]) -> None:
    trainable = parameters()
    path = context.base / "stage.safetensors"
    leave(path, "si", Kept(importances(trainable), dict(trainable), tasks=3))
    entry = load("penalty", "si")
    assert entry.config(earlier="first").files() == ["first"]
    entry.function(entry.config(earlier="first"), on(context, trainable, earlier=path))
    assert told == [f"si: holds what 3 earlier tasks have left in {path}"]


def refused(context: PenaltyContext, path: Path, trainable: dict[str, nn.Parameter]) -> str:
    entry = load("penalty", "si")
    with pytest.raises(ConfigError) as caught:
        entry.function(entry.config(), on(context, trainable, earlier=path))
    return str(caught.value)


def test_another_tuner_wrote_the_file(context: PenaltyContext) -> None:
    """Another rank, other layers: everything that does not fit is named at once."""
    path, then, now = context.base / "si.safetensors", parameters(), parameters()
    leave(path, "si", Kept(importances(then), dict(then)))
    now["b.weight"] = now.pop("a.bias")
    now["a.weight"] = nn.Parameter(torch.zeros(5, 4))
    message = refused(context, path, now)
    assert "lacks parameters that move now: b.weight; use the tuner" in message
    assert "has parameters that do not move now: a.bias" in message
    assert "a.weight had the shape (3, 4) and has (5, 4) now" in message


def test_the_task_starts_elsewhere(context: PenaltyContext) -> None:
    path, then = context.base / "si.safetensors", parameters()
    leave(path, "si", Kept(importances(then), {n: p.detach() for n, p in then.items()}))
    assert "did not end where this one starts" in refused(context, path, parameters(seed=1))
    rounded = {n: nn.Parameter(p.detach().bfloat16().double()) for n, p in then.items()}  # saved in another precision
    entry = load("penalty", "si")
    entry.function(entry.config(), on(context, rounded, earlier=path))


def test_the_file_of_another_penalty(context: PenaltyContext) -> None:
    path, then = context.base / "x.safetensors", parameters()
    leave(path, "mas", Kept(importances(then), dict(then)))
    assert "was written by mas, not by si; give the file of si" in refused(context, path, then)
    path.write_bytes(b"nonsense")
    assert "cannot be read" in refused(context, path, then)


def test_nothing_is_lost_in_the_file(tmp_path: Path) -> None:
    then = parameters()
    kept = Kept(importances(then), {n: p.detach() for n, p in then.items()}, rest=1 / 3, tasks=2)
    leave(tmp_path / "f", "ewc", kept)
    again = take_up(tmp_path / "f", "ewc", then)
    assert (again.rest, again.tasks) == (1 / 3, 2)
    for name in then:
        assert torch.equal(again.importance[name], kept.importance[name])
        assert torch.equal(again.center[name], kept.center[name])
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("part", [7, 1 << 17])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_a_pull_is_the_same_in_parts_and_at_once(
    monkeypatch: pytest.MonkeyPatch, part: int, weighted: bool, centered: bool
) -> None:
    monkeypatch.setattr(_base, "PART", part)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 6))
    center = torch.randn(5, 6) if centered else None
    share = torch.rand(5, 6).bfloat16() if weighted else None
    before = torch.randn(5, 6)
    weight.grad = before.clone()
    away = weight.detach() - (0 if center is None else center)
    pull = away if share is None else share.float() * away
    assert float(_base.add_pull(weight, center, 0.3, share)) == pytest.approx(float((pull * away).sum()), rel=1e-5)
    torch.testing.assert_close(weight.grad, before + 0.3 * pull)
    weight.grad = None
    _base.add_pull(weight, center, 0.3, share)
    torch.testing.assert_close(weight.grad, 0.3 * pull)


def test_a_pull_reaches_tensors_that_are_not_contiguous() -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3).t())
    assert float(_base.add_pull(weight, None, 2.0)) == 55.0
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * weight.detach())
