"""Packed weights against the layers' own products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from posttrain.inference import packed as packing
from posttrain.inference.packed import packed, pays
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.models.load import load_model
from posttrain.models.processor import Processor

able = pytest.mark.skipif(not torch._C._has_mkldnn, reason="this torch has no oneDNN")


@pytest.fixture
def paying(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where it pays, for models of any size."""
    monkeypatch.setattr(packing, "pays", lambda: True)
    monkeypatch.setattr(packing, "LEAST", 0)


@pytest.fixture
def model(pico_path: Callable[..., Path]) -> Any:
    return load_model(str(pico_path("llama")), offline=True).model.eval()


def taken(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


IDS = torch.arange(8, 48).view(4, 10)


@able
def test_logits_are_the_same_and_layers_are_given_back(model: Any, paying: None) -> None:
    with torch.inference_mode():
        expected = model(IDS).logits
        with packed(model):
            assert len(taken(model)) == 2 * 7 + 1
            found = model(IDS).logits
            with packed(model):  # within another
                pass
            assert len(taken(model)) == 2 * 7 + 1
    assert taken(model) == []
    assert torch.allclose(found, expected, atol=1e-5)


@able
def test_a_lora_is_packed_with_its_update(model: Any, paying: None) -> None:
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_alpha=7)).eval()
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.normal_()
    weights = {n: p.clone() for n, p in tuned.named_parameters()}
    with torch.inference_mode():
        expected = tuned(IDS).logits
        with tuned.disable_adapter():
            without = tuned(IDS).logits
        with packed(tuned):
            assert all("lora" not in name for name in taken(tuned))
            found = tuned(IDS).logits
            with tuned.disable_adapter():  # a packed layer whose adapter is switched off
                off = tuned(IDS).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(off, without, atol=1e-5)
    assert not torch.allclose(without, expected, atol=1e-2)
    assert all(torch.equal(p, weights[n]) for n, p in tuned.named_parameters())


@able
def test_gradients_go_the_own_way(model: Any, paying: None) -> None:
    with packed(model):
        model(IDS).logits.sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@able
def test_bfloat16_is_packed_too(model: Any, paying: None) -> None:
    low = model.to(torch.bfloat16)
    with torch.inference_mode():
        expected = low(IDS).logits
        with packed(low):
            found = low(IDS).logits
    assert torch.allclose(found.float(), expected.float(), atol=0.05)


def test_small_and_very_large_models_are_left_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "pays", lambda: True)
    with packed(model):
        assert taken(model) == []
    monkeypatch.setattr(packing, "LEAST", 0)
    monkeypatch.setattr(packing, "BYTES", 1000)
    with packed(model):
        assert taken(model) == []


def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("AMD EPYC 9655", torch._C._has_mkldnn), ("Intel(R) Xeon(R)", False), ("", False)):
        monkeypatch.setattr(packing, "processor", lambda name=name: Processor(name, "AVX512-BF16", True))
        pays.cache_clear()
        assert pays() is expected
    pays.cache_clear()


@able
def test_many_exams_in_a_row_pack_once(pico_path: Callable[..., Path], paying: None) -> None:
    respondent = ModelRespondent(load_model(str(pico_path("llama")), offline=True))
    prompted = PromptedRespondent(respondent, "Speak up.")
    expected = prompted.answers(["Who are you?", "臺灣最高的山？"], max_new_tokens=20)
    with prompted.held():
        assert taken(respondent.model)
        assert prompted.answers(["Who are you?", "臺灣最高的山？"], max_new_tokens=20) == expected
        assert taken(respondent.model)
    assert taken(respondent.model) == []
