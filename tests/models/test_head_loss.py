"""The head in chunks against plain logits: losses and all gradients."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from posttrain.models.head_loss import (
    PlainHead,
    chunk_rows,
    chunked,
    chunked_nll,
    head_kept,
    kept_in,
    plain_head,
    states_at,
)
from posttrain.models.logits import logits_at
from tests.pico import FAMILIES, VOCABULARY, pico

IGNORED = -100


def rows(seed: int = 0, batch: int = 3, length: int = 17) -> tuple[Tensor, Tensor]:
    """Random tokens and targets, half of which are asked."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, VOCABULARY, (batch, length), generator=draw)
    targets = torch.randint(8, VOCABULARY, (batch, length), generator=draw)
    return ids, targets.masked_fill(torch.rand(batch, length, generator=draw) < 0.5, IGNORED)


def plain(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Nats of each asked token from the model's own logits, (N,)."""
    asked = targets != IGNORED
    return functional.cross_entropy(logits_at(model, ids, None)[asked].float(), targets[asked], reduction="none")


def cut(model: nn.Module, ids: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """The same with the head in chunks."""
    head, asked = plain_head(model), targets != IGNORED
    assert head is not None
    return chunked_nll(states_at(model, ids, asked), head, targets[asked], rows=chunk)


def compare(model: nn.Module, chunk: int, tolerance: float = 1e-5) -> None:
    """Losses and gradients of both ways, each token with a weight of its own."""
    ids, targets = rows()
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for way in (plain, partial(cut, chunk=chunk)):
        model.zero_grad()
        nats = way(model, ids, targets)
        torch.autograd.backward((nats * torch.linspace(0.1, 2.0, len(nats))).sum())
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        found.append((nats.detach(), gradients))
    (expected, slopes), (nats, own) = found
    assert torch.allclose(nats, expected, atol=tolerance, rtol=tolerance)
    assert own.keys() == slopes.keys()
    assert slopes
    for name, slope in slopes.items():
        assert torch.allclose(own[name], slope, atol=tolerance * max(1.0, float(slope.abs().max()))), name


def load(family: str, folder: Path, **settings: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(pico(family, folder), dtype=torch.float32)
    for name, value in settings.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_as_the_plain_way(family: str, tmp_path: Path) -> None:
    compare(load(family, tmp_path), chunk=7)


def test_softcap_of_the_logits(tmp_path: Path) -> None:
    model = load("gemma3", tmp_path, final_logit_softcapping=0.5)
    head = plain_head(model)
    assert head is not None
    assert head[2:] == (1.0, 0.5)
    compare(model, chunk=5)


def test_logits_that_are_scaled(tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(3)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = GraniteForCausalLM(GraniteConfig(vocab_size=VOCABULARY, logits_scaling=8.0, **small))
    head = plain_head(model)
    assert head is not None
    assert head.factor == pytest.approx(1 / 8, rel=1e-5)
    compare(model, chunk=6)


def test_a_bias_of_the_head(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    model.lm_head.bias = nn.Parameter(torch.randn(VOCABULARY))
    compare(model, chunk=9)


class Bent(nn.Module):
    """A head's logits, changed by something that no factor and no softcap explains."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def get_output_embeddings(self) -> Any:
        return self.model.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        out = self.model(**inputs)
        out.logits = out.logits + torch.arange(VOCABULARY) / 100
        return out


def test_what_is_not_plain_is_left_to_the_plain_way(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    assert plain_head(Bent(model)) is None
    assert plain_head(model) is not None, "what a trial has shown belongs to the model, not to its head alone"
    lora = get_peft_model(load("qwen3", tmp_path), LoraConfig(r=2, target_modules=["lm_head"]))
    assert plain_head(lora) is None, "LoRA on the head"


def test_a_trial_keeps_no_model_alive(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    assert plain_head(model) is not None
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_lora_and_virtual_tokens(tmp_path: Path) -> None:
    lora = get_peft_model(load("qwen3", tmp_path), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    compare(lora, chunk=7)
    soft = get_peft_model(load("llama", tmp_path), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    compare(soft, chunk=7)


def test_autocast_is_as_coarse_as_the_plain_way(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    ids, targets = rows()
    fine = plain(model, ids, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = plain(model, ids, targets), cut(model, ids, targets, 7)
    assert found.dtype == torch.float32
    assert (found - fine).abs().max().item() <= 2 * (expected - fine).abs().max().item() + 1e-3


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(0, 12),
    chunk=st.integers(1, 14),
    moves=st.booleans(),
    softcap=st.sampled_from([0.0, 1.5]),
    factor=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 5),
)
def test_any_cut_gives_the_same(tokens: int, chunk: int, moves: bool, softcap: float, factor: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=draw, dtype=torch.float64, requires_grad=moves)
    bias = torch.randn(11, generator=draw, dtype=torch.float64, requires_grad=moves)
    targets = torch.randint(0, 11, (tokens,), generator=draw)
    given_to = torch.randn(tokens, generator=draw, dtype=torch.float64)
    parts = [hidden, *([weight, bias] if moves else [])]
    raw = factor * (hidden @ weight.T + bias)
    logits = softcap * torch.tanh(raw / softcap) if softcap else raw
    expected = functional.cross_entropy(logits, targets, reduction="none")
    slopes = torch.autograd.grad((expected * given_to).sum(), parts)
    found = chunked_nll(hidden, PlainHead(weight, bias, factor, softcap), targets, rows=chunk)
    own = torch.autograd.grad((found * given_to).sum(), parts)
    assert torch.allclose(found, expected)
    assert all(torch.allclose(a, b) for a, b in zip(own, slopes, strict=True))


def test_no_logits_of_all_tokens_are_made() -> None:
    widest: list[int] = []

    def look(logits: Tensor, at: slice, wants: bool) -> tuple[Tensor, Tensor | None]:
        widest.append(len(logits))
        return logits.sum(1), torch.ones_like(logits) if wants else None

    hidden = torch.randn(50, 4, requires_grad=True)
    torch.autograd.backward(chunked(hidden, PlainHead(torch.randn(9, 4), None), look, rows=16).sum())
    assert widest == [16, 16, 16, 2], "once, since the head does not move"
    assert chunk_rows(49_152) * 49_152 * 4 <= 32 * 2**20


def test_a_head_is_copied_once_while_it_is_kept_and_does_not_move(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pico("llama", tmp_path))
    weight = model.get_output_embeddings().weight.requires_grad_(False)
    low = torch.bfloat16
    assert kept_in(weight, low) is not kept_in(weight, low)
    with head_kept(model, low):
        assert kept_in(weight, low) is kept_in(weight, low)
        assert torch.equal(kept_in(weight, low), weight.to(low))
        assert kept_in(weight, torch.float32) is weight
        weight.mul_(2)  # whoever moves it gets what it is now
        assert torch.equal(kept_in(weight, low), weight.to(low))
    assert kept_in(weight, low) is not kept_in(weight, low)
    with head_kept(model.requires_grad_(), low):
        assert kept_in(weight, low) is not kept_in(weight, low)


def test_the_head_computes_nothing_where_its_input_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(pico("gemma3", tmp_path))
    ids = torch.arange(10, 22).view(2, 6)
    plain = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", only(nn.Linear.forward, model.get_output_embeddings()))
        found = states_at(model, ids, torch.ones_like(ids, dtype=torch.bool))
        with pytest.raises(AssertionError):
            model(input_ids=ids)
    assert torch.allclose(found, plain.flatten(0, 1))
    assert "forward" not in vars(model.get_output_embeddings())


def only(forward: Any, head: nn.Module) -> Any:
    """A linear layer's forward pass that fails for this one."""

    def call(layer: nn.Module, x: Tensor) -> Any:
        assert layer is not head
        return forward(layer, x)

    return call
