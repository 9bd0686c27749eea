"""bfloat16 on a CPU: when it is taken, what is held in it, and that everything else stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from posttrain.models.adapters import plain_lora
from posttrain.models.load import load_model
from posttrain.models.processor import Processor
from posttrain.training import precision as module
from posttrain.training.precision import Lowered, precision_of
from posttrain.training.run import train
from posttrain.training.short_attention import NAME, short_attention
from posttrain.training.slim_lora import Part, SlimLora
from tests.training.tiny import PicoPath, config, load, rows, tuned

FAST, SLOW = Processor("x", "AMX", True), Processor("x", "", False)


@pytest.mark.parametrize(
    ("able", "big", "asked", "dtype", "reason"),
    [
        (FAST, 1, "auto", torch.bfloat16, "since the processor has AMX"),
        (SLOW, 1, "auto", None, "neither AMX nor AVX512-BF16"),
        (FAST, 1 << 40, "auto", None, "the model has only"),
        (SLOW, 1, "bf16", torch.bfloat16, "as configured"),
        (FAST, 1, "float32", None, "as configured"),
    ],
)
def test_auto_asks_the_processor_and_the_size(
    able: Processor,
    big: int,
    asked: str,
    dtype: torch.dtype | None,
    reason: str,
    pico_path: PicoPath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "processor", lambda: able)
    monkeypatch.setattr(module, "BIG_ON_CPU", big)
    found = precision_of(config(precision=asked), tuned(load(pico_path).model))
    assert found.dtype == dtype
    assert reason in str(found)


def test_auto_takes_it_only_where_small_updates_are_kept(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processor", lambda: FAST)
    monkeypatch.setattr(module, "BIG_ON_CPU", 1)
    for model in (
        load(pico_path).model,
        tuned(load(pico_path).model, dora=True),
        tuned(load(pico_path).model, dropout=0.5),
    ):
        found = precision_of(config(), model)
        assert found.dtype is None
        assert "only plain LoRA" in found.reason


def test_frozen_layers_are_bfloat16_within_and_bit_by_bit_the_same_after(pico_path: PicoPath) -> None:
    model = tuned(load(pico_path).model)
    exact = next(p for n, p in model.named_parameters() if n.endswith("base_layer.weight"))
    exact.data = exact.data.bfloat16().float()  # nothing is kept beside this one
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lowered = Lowered(model, torch.bfloat16)
    core = model.get_base_model()
    for _ in range(2):
        with lowered:
            layers = {n: p.dtype for n, p in model.named_parameters() if n.endswith("base_layer.weight")}
            others = {p.dtype for n, p in model.named_parameters() if n not in layers and "lm_head" not in n}
            assert set(layers.values()) == {torch.bfloat16}
            assert others == {torch.float32}
            assert core.config._attn_implementation == NAME
            assert [kept is None for p, kept in lowered.held if p is exact] == [True]
            with lowered.raised():
                assert all(
                    torch.equal(p, before[n]) and p.dtype == before[n].dtype for n, p in model.named_parameters()
                )
            assert exact.dtype == torch.bfloat16
        assert all(torch.equal(p, before[n]) and p.dtype == torch.float32 for n, p in model.named_parameters())
        assert core.config._attn_implementation == "sdpa"
        assert not any("forward" in vars(layer) for layer in model.modules())


def test_loss_and_gradient_are_those_of_float32_within_bfloat16(pico_path: PicoPath) -> None:
    model = tuned(load(pico_path).model)
    ids = torch.randint(5, 60, (4, 24), generator=torch.Generator().manual_seed(0))

    def passes() -> tuple[float, torch.Tensor]:
        model.zero_grad()
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        assert {g.dtype for g in gradients} == {torch.float32}
        return loss.item(), torch.cat(gradients)

    exact, gradient = passes()
    with Lowered(model, torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, other = passes()
    assert exact != rounded == pytest.approx(exact, rel=5e-3)
    assert float(functional.cosine_similarity(gradient, other, dim=0)) > 0.999
    assert float(other.norm() / gradient.norm()) == pytest.approx(1, rel=0.01)


def test_lora_learns_as_in_float32_and_the_base_comes_back(pico_path: PicoPath) -> None:
    found = {}
    for asked in ("float32", "bf16"):
        loaded = load(pico_path)
        before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
        settings = config(tuner="lora", precision=asked, optimizer={"learning_rate": 2e-2, "max_steps": 40})
        found[asked] = train(settings, loaded=loaded, rows=rows(4))
        after = {n.removeprefix("base_model.model."): p for n, p in found[asked].model.named_parameters()}
        for name, weight in before.items():
            own = name.replace("_proj.weight", "_proj.base_layer.weight")
            assert torch.equal(after[own if own in after else name], weight)
        assert {p.dtype for p in found[asked].model.parameters()} == {torch.float32}
    first, last = ({k: r.history[i]["loss_nats"] for k, r in found.items()} for i in (0, -1))
    assert last["float32"] < first["float32"] - 0.3
    assert last["bf16"] == pytest.approx(last["float32"], rel=0.02)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
def test_lora_on_a_tied_matrix_leaves_the_other_place_alone(pico_path: PicoPath, targets: list[str]) -> None:
    model = tuned(load(pico_path).model, target_modules=targets)
    core = model.get_base_model()
    shared = core.get_output_embeddings().weight
    assert core.get_input_embeddings().weight is shared
    before, ids = shared.detach().clone(), torch.tensor([[5, 6, 7, 8, 90]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with Lowered(model, torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
            lowered = model(input_ids=ids).logits.float()
    assert float((lowered - plain).square().mean().sqrt()) < 0.03 * float(plain.std())
    assert core.get_output_embeddings().weight is core.get_input_embeddings().weight
    assert torch.equal(core.get_input_embeddings().weight, before)


def lora_layer(x: Any, wide: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
    """One layer alone."""
    return SlimLora.apply(  # type: ignore[no-untyped-call]
        x, wide, bias, (Part(0, len(b), 0, scale),), a, b
    )


def test_a_lora_layer_written_out_is_autograd_s() -> None:
    torch.manual_seed(0)
    x, weight, bias, a, b = (torch.randn(*s, dtype=torch.float64) for s in ((2, 5, 6), (7, 6), (7,), (3, 6), (7, 3)))
    for one in (x, a, b):
        one.requires_grad_()
    plain = functional.linear(x, weight, bias) + 2.5 * (x @ a.T @ b.T)
    slim = lora_layer(x, torch.cat([weight, torch.zeros(7, 3)], 1), bias, a, b, 2.5)
    assert torch.allclose(plain, slim)
    out = torch.randn_like(plain)
    for one, other in zip(
        torch.autograd.grad(plain, (x, a, b), out), torch.autograd.grad(slim, (x, a, b), out), strict=True
    ):
        assert torch.allclose(one.double(), other.double(), rtol=1e-5)


def test_an_update_smaller_than_the_last_place_is_not_lost() -> None:
    """What autocast would do with it: round to bfloat16, add, round again. On average all of it is lost."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32), torch.randn(512, 32)
    a, b = torch.randn(4, 32), torch.randn(512, 4) * 1e-4
    update = x @ a.T @ b.T
    wide = torch.cat([weight, torch.zeros(512, 4)], 1).bfloat16()
    without = functional.linear(x.bfloat16(), weight.bfloat16())
    slim = lora_layer(x, wide, None, a, b, 1.0) - without
    twice = without + update.bfloat16() - without

    def share(found: torch.Tensor) -> float:
        """How much of the update is there: the slope of what was found over what should be."""
        return float((found.float() * update).sum() / update.square().sum())

    assert share(twice) < 0.5
    assert share(slim) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"dora": True}])
def test_layers_of_another_kind_are_left_alone(options: dict[str, Any], pico_path: PicoPath) -> None:
    assert not any(plain_lora(layer) for layer in tuned(load(pico_path).model, **options).modules())
    assert any(plain_lora(layer) for layer in tuned(load(pico_path).model).modules())


def test_an_adapter_that_is_switched_off_is_off(pico_path: PicoPath) -> None:
    model = tuned(load(pico_path).model)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), Lowered(model, torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        on = model(input_ids=ids).logits
        with model.disable_adapter():
            off = model(input_ids=ids).logits
    plain = load_model(str(pico_path("llama"))).model(input_ids=ids).logits.detach()
    assert torch.allclose(off.float(), plain, atol=0.05 * float(plain.std()))
    assert not torch.allclose(on, off)


def test_attention_by_products_is_sdpa_forwards_and_backwards() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 4, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2))
    plain = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    short = short_attention(query, key, value, 0.3)
    assert torch.allclose(plain, short)
    out = torch.randn_like(plain)
    for one, other in zip(
        torch.autograd.grad(plain, (query, key, value), out),
        torch.autograd.grad(short, (query, key, value), out),
        strict=True,
    ):
        assert torch.allclose(one, other)
