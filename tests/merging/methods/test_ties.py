from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.merging import engine
from posttrain.merging.engine import Job, Merge, in_memory
from posttrain.merging.layout import create, lay_out
from posttrain.merging.methods.ties import TiesConfig, ties
from posttrain.merging.sources import StoredModel
from posttrain.merging.values import place_of
from tests.merging.given import CASES, DENSITIES, WEIGHTS, far, made, merged, peft, per_model
from tests.merging.oracle import mergekit

BASE = torch.zeros(4)
A = torch.tensor([4.0, -3.0, 1.0, 0.5])
B = torch.tensor([-2.0, -3.0, 1.0, 2.0])


def test_by_hand() -> None:
    """Half of A is 4 and -3; of B -3 and, as they are equally large, -2 and 2."""
    assert merged(TiesConfig(density=0.5), BASE, [A, B]).tolist() == [4, -3, 0, 2]
    assert merged(TiesConfig(density=0.5, compat="mergekit"), BASE, [A, B]).tolist() == [4, -3, 0, 0]
    assert merged(TiesConfig(density=0.5, compat="peft"), BASE, [A, B]).tolist() == [4, -3, 0, 0]
    assert merged(TiesConfig(density=0.5, normalize=False, scale=0.5), BASE, [A, B]).tolist() == [2, -3, 0, 1]


def test_weights_decide_signs_and_paper_and_mergekit_divide_otherwise() -> None:
    weight = {"0": 1.0, "1": 3.0}
    assert merged(TiesConfig(density=1, weight=weight), BASE, [A, B]).tolist() == [-6, -6, 2, 3.25]
    own = merged(TiesConfig(density=1, weight=weight, compat="mergekit"), BASE, [A, B])
    assert own.tolist() == [-2, -3, 1, 1.625]
    assert merged(TiesConfig(density=1, weight={"1": 0.0}), BASE, [A, B]).tolist() == A.tolist()


def test_a_sum_of_zero_is_positive() -> None:
    models = [torch.tensor([2.0, 1]), torch.tensor([0.0, 1])]
    assert merged(TiesConfig(density=1), torch.tensor([1.0, 1]), models).tolist() == [2, 1]


def test_trimming_over_the_model_or_over_each_tensor() -> None:
    large, small = torch.tensor([10.0, 9.0, 8.0]), torch.tensor([1.0, 2.0, 7.0])
    models = {"base": {"v": BASE[:3], "w": BASE[:3]}, "a": {"v": large, "w": small}}
    made = in_memory(models, "base", TiesConfig(density=0.5))
    assert made["v"].tolist() == [10, 9, 8]
    assert made["w"].tolist() == [0, 0, 0]
    made = in_memory(models, "base", TiesConfig(density=0.34, trim="tensor"))
    assert made["v"].tolist() == [10, 0, 0]
    assert made["w"].tolist() == [0, 0, 7]
    by_name = TiesConfig.model_validate({"density": [{"filter": "v", "value": 0.34}, {"value": 0.67}]})
    made = in_memory(models, "base", by_name)
    assert made["v"].tolist() == [10, 0, 0]
    assert made["w"].tolist() == [0, 2, 7]


@pytest.mark.parametrize(("shape", "models"), CASES)
@pytest.mark.parametrize("normalize", [True, False])
def test_as_mergekit(shape: tuple[int, ...], models: int, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for weights, densities, scale in product(([1.0] * 3, WEIGHTS), (DENSITIES, [1.0, 0.0, 0.4]), (0.3,)):
        config = TiesConfig(
            weight=per_model(weights, models),
            density=per_model(densities, models),
            scale=scale,
            normalize=normalize,
            compat="mergekit",
        )
        each = {"weight": weights[:models], "density": densities[:models]}
        theirs = mergekit("ties", others, base, each, {"lambda": scale, "normalize": normalize})
        assert far(merged(config, base, others), theirs) < 1e-6


@pytest.mark.parametrize(("shape", "models"), CASES)
def test_as_peft(shape: tuple[int, ...], models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.merging.stack.BLOCK", 100)
    base, others = made(shape, models)
    for weights, density in product(([1.0] * 3, WEIGHTS), (0.2, 0.7)):
        theirs = peft().ties([one - base for one in others], torch.tensor(weights[:models]), density)
        config = TiesConfig(weight=per_model(weights, models), density=density, compat="peft")
        assert far(merged(config, base, others), base + theirs) < 1e-6
        if weights[0] == 1:
            assert far(merged(TiesConfig(density=density, trim="tensor"), base, others), base + theirs) < 1e-6


def official(tensors: list[dict[str, Tensor]], density: float) -> dict[str, Tensor]:
    """TIES as its paper describes it, over the whole model. tensors: the differences of each model."""
    flat = torch.stack([torch.cat([one.flatten() for one in own.values()]) for own in tensors])
    rank = int(density * flat.shape[1])
    for own in flat:
        own[own.abs() < own.abs().topk(rank).values[-1]] = 0
    positive = flat.sum(0) >= 0
    agrees = (flat != 0) & ((flat > 0) == positive)
    mean = (flat * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    sizes = [one.numel() for one in tensors[0].values()]
    shapes = [one.shape for one in tensors[0].values()]
    parts = zip(tensors[0], torch.split(mean, sizes), shapes, strict=True)
    return {name: part.view(shape) for name, part, shape in parts}


def several(dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """A base and two models of four tensors."""
    draw = torch.Generator().manual_seed(5)
    shapes = {"emb": (50, 8), "layers.0.w": (16, 24), "layers.1.w": (16, 24), "norm": (24,)}
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    models = {"base": base}
    for number in range(2):
        models[f"m{number}"] = {name: one + torch.randn(one.shape, generator=draw) * 0.01 for name, one in base.items()}
    return {model: {name: one.to(dtype) for name, one in own.items()} for model, own in models.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.05, 0.4, 0.9])
def test_as_the_paper_over_the_whole_model(dtype: torch.dtype, density: float) -> None:
    models = several(dtype)
    base = {name: one.float() for name, one in models["base"].items()}
    changes = [{name: one.float() - base[name] for name, one in models[model].items()} for model in ("m0", "m1")]
    ours = in_memory(models, "base", TiesConfig(density=density))
    for name, change in official(changes, density).items():
        assert torch.equal(ours[name], (base[name] + change).to(dtype))


def test_threads_and_the_disk_change_nothing(tmp_path: Path) -> None:
    models = several(torch.bfloat16)
    for model, tensors in models.items():
        (tmp_path / model).mkdir()
        save_file(tensors, tmp_path / model / "model.safetensors")
    stored = {model: StoredModel(tmp_path / model) for model in models}
    first = stored["base"].tensors
    places = place_of(list(first))
    jobs = [Job(name, one, places[name]) for name, one in first.items()]
    config = TiesConfig(density=0.3)
    others = {model: one for model, one in stored.items() if model != "base"}
    merge = Merge(others, stored["base"], ties, config, jobs, lay_out(first))
    wanted = in_memory(models, "base", config)
    for threads in (1, 3):
        out = tmp_path / str(threads)
        out.mkdir()
        create(merge.layout, out)
        engine.run(merge, out, threads=threads)
        got = load_file(out / "model.safetensors")
        assert all(torch.equal(got[name], one) for name, one in wanted.items())
    for one in stored.values():
        one.close()


def test_models_that_are_the_same_merge_to_it() -> None:
    base, (model,) = made((30, 8), 1)
    base, model = base.bfloat16(), model.bfloat16()
    assert torch.equal(merged(TiesConfig(), base, [base] * 3), base)
    for models in (1, 2, 3, 5):
        assert torch.equal(merged(TiesConfig(density=1), base, [model] * models), model)


def test_a_nan_is_not_trimmed_away() -> None:
    broken = A.clone()
    broken[2] = float("nan")
    with pytest.raises(PosttrainError, match="w"):
        merged(TiesConfig(density=0.25), BASE, [broken, B])


def test_bad_options() -> None:
    for density in (1.5, -0.1, {"a": [0.2, 2]}, [{"filter": "x", "value": [0, 3]}]):
        with pytest.raises(ValidationError, match="is no share; give a number from 0 to 1"):
            TiesConfig.model_validate({"density": density})
    with pytest.raises(ValidationError):
        TiesConfig.model_validate({"trim": "layer"})
