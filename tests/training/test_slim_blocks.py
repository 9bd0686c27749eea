"""Blocks written out: forwards and backwards as autograd has them, and only where the model computes just that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from posttrain.training.precision import Lowered
from posttrain.training.slim_blocks import gated, kinds_of, normed, turned
from posttrain.training.slim_lora import Joined, still
from tests.pico import FAMILIES, pico
from tests.training.tiny import PicoPath, load, tuned


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same(plain: Tensor, written: Tensor, inputs: tuple[Tensor, ...], exact: float = 1e-9) -> None:
    """Equal, and equal gradients for the inputs."""
    assert torch.allclose(plain, written, rtol=exact)
    out = torch.randn_like(plain)
    gradients = (torch.autograd.grad(made, inputs, out, retain_graph=True) for made in (plain, written))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=exact, atol=exact)


def test_a_norm_is_autograd_s() -> None:
    torch.manual_seed(0)
    x, weight = drawn(2, 5, 6), torch.randn(6, dtype=torch.float64)
    same(weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1), normed(x, weight, 0.1), (x,))


def test_a_gate_is_autograd_s() -> None:
    torch.manual_seed(0)
    both = drawn(2, 5, 8)
    gate, up = both.chunk(2, -1)
    same(functional.silu(gate) * up, gated(both), (both,))


@pytest.mark.parametrize("rows", [1, 2])
def test_turning_is_autograd_s(rows: int) -> None:
    torch.manual_seed(0)
    joined_states, cos, sin = drawn(2, 5, 8 * 6), torch.randn(rows, 5, 6).double(), torch.randn(rows, 5, 6).double()
    states = joined_states.view(2, 5, 8, 6).transpose(1, 2)
    plain = (*apply_rotary_pos_emb(states[:, :4], states[:, 4:6], cos, sin), states[:, 6:])
    for one, other in zip(plain, turned(joined_states, cos, sin, 4), strict=True):
        assert other.is_contiguous()
        same(one, other, (joined_states,))


def test_layers_that_read_the_same_are_one(pico_path: PicoPath) -> None:
    model = tuned(load(pico_path).model).double()
    attention: Any = next(m for n, m in model.named_modules() if n.endswith("self_attn"))
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    x = drawn(2, 5, 32)
    moving = tuple(p for layer in layers for n, p in layer.named_parameters() if "lora_" in n)
    plain = [layer(x) for layer in layers]
    out = [torch.randn_like(one) for one in plain]
    gradients = torch.autograd.grad(plain, (x, *moving), out)
    group = Joined(layers)
    for given, found in (([torch.cat(out, -1)], [group(x)]), (out, [layer(x) for layer in layers])):
        assert torch.allclose(torch.cat(plain, -1), torch.cat(found, -1))
        for one, other in zip(gradients, torch.autograd.grad(found, (x, *moving), given), strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)  # gradients of A and B come as float32


def test_what_stays_is_laid_out_once(pico_path: PicoPath) -> None:
    model = tuned(load(pico_path).model)
    attention = model.get_base_model().model.layers[0].self_attn
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    b = layers[1].lora_B["default"].weight
    group, x = Joined(layers), torch.randn(2, 5, 32)

    def asked() -> Tensor:
        with torch.no_grad():
            return torch.cat([group(x), *(layer(x) for layer in layers)], -1)

    for _ in range(2):  # the second time after an update
        expected = asked()
        with still():
            found = asked()
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
            with torch.no_grad():
                b.add_(1)  # what the promise says nobody does: it is not looked at again
            assert torch.equal(asked(), found)
            moved = group(x)  # but where a gradient is asked, it is
            assert moved.requires_grad
            assert not torch.allclose(moved, found[..., : moved.shape[-1]], atol=1e-3)
    assert not torch.allclose(asked(), found, atol=1e-3)


def counted(model: Any) -> tuple[int, int, int]:
    found = kinds_of(model)
    return len(found.norms), len(found.gates), len(found.attentions)


# two layers each; norms: two (gemma3: also two more, and of its heads) and one at the end
TAKEN = {
    "llama": (5, 2, 2),
    "qwen3": (9, 2, 0),  # norms of queries and keys stand in its attention
    "mistral": (5, 2, 2),
    "gemma3": (0, 0, 0),  # norms by 1 + w, gates by gelu
    "glm": (5, 0, 0),  # gate and up are one layer, and heads are turned in part
    "gpt2": (0, 0, 0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_a_model_computes_is_taken_over(family: str, pico_path: PicoPath) -> None:
    model = tuned(load(pico_path, family).model)
    assert counted(model) == TAKEN[family]
    assert all(not one._forward_hooks for one in model.modules())
    assert model.get_base_model().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"attention_dropout": 0.1}, {"attention_bias": True}])
def test_a_llama_with_something_else(change: dict[str, Any], tmp_path: Path) -> None:
    folder = pico("llama", tmp_path)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **change))
    tune = tuned(model).eval()
    norms, gates, attentions = counted(tune)
    assert norms == 5
    assert gates == (0 if "hidden_act" in change else 2)
    assert attentions == (0 if "attention_dropout" in change else 2)
    agrees(tune)


def test_a_window_that_slides_is_seen_though_the_trial_is_short(tmp_path: Path) -> None:
    settings = AutoConfig.from_pretrained(pico("mistral", tmp_path), sliding_window=16)
    torch.manual_seed(0)
    model = tuned(AutoModelForCausalLM.from_config(settings))
    assert counted(model) == (5, 2, 0)
    agrees(model)


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"dora": True}])
def test_layers_of_another_kind_are_left_alone(options: dict[str, Any], pico_path: PicoPath) -> None:
    assert counted(tuned(load(pico_path).model, **options)) == (0, 0, 0)


def passes(model: Any, length: int = 24) -> tuple[float, Tensor]:
    ids = torch.randint(5, 60, (3, length), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def agrees(model: Any, length: int = 24) -> None:
    """Loss and gradient in bfloat16 are those of float32 within its precision."""
    exact, gradient = passes(model, length)
    with Lowered(model, torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, other = passes(model, length)
    assert rounded == pytest.approx(exact, rel=5e-3)
    assert float(functional.cosine_similarity(gradient, other, dim=0)) > 0.998
    assert float(other.norm() / gradient.norm()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_of_every_family(family: str, pico_path: PicoPath) -> None:
    agrees(tuned(load(pico_path, family).model))


def test_long_rows_go_through_the_flash_kernel(pico_path: PicoPath) -> None:
    agrees(tuned(load(pico_path).model), 300)


def test_calls_of_another_kind_go_the_model_s_own_way(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned(load(pico_path).model).eval()
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padding on the left
    layer: Any = next(m for n, m in model.named_modules() if n.endswith("layers.0.mlp.up_proj"))
    seen: list[Tensor] = []

    def logits(**options: Any) -> Tensor:
        found: Tensor = model(input_ids=ids, use_cache=False, **options).logits.float()
        return found

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain, masked, cached = logits(), logits(attention_mask=mask), model.generate(ids, max_new_tokens=4)
        with Lowered(model, torch.bfloat16):
            near(logits(), plain)
            near(logits(attention_mask=mask)[0, 4:], masked[0, 4:])
            assert (model.generate(ids, max_new_tokens=4) == cached).float().mean() > 0.8
            with layer.register_forward_hook(lambda _, args, output: seen.append(output)):
                near(logits(), plain)
            assert len(seen) == 1
            with model.disable_adapter():
                off = logits()
        with model.disable_adapter():
            near(off, logits())


def near(one: Tensor, other: Tensor) -> None:
    assert torch.allclose(one, other, atol=0.06 * float(other.std()))


def test_what_a_token_keeps_is_known_where_all_is_taken_over(pico_path: PicoPath) -> None:
    layer = 64 + 48 + 48 + 64 + 3 * 96
    llama = Lowered(tuned(load(pico_path).model), torch.bfloat16)
    assert llama.token_bytes() == int(2 * layer * 2 * 1.1)
    assert Lowered(tuned(load(pico_path, "qwen3").model), torch.bfloat16).token_bytes() is None
    assert Lowered(tuned(load(pico_path).model), None).token_bytes() is None
