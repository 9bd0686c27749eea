from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.models.load import load_model
from posttrain.models.perturbed import perturbed, resolve_arithmetic, round_weights


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_copy_in_bfloat16(family: str, pico_path: Callable[[str], Path]) -> None:
    model = load_model(str(pico_path(family))).model
    kept = {name: p.clone() for name, p in model.named_parameters()}
    copy = perturbed(model, "bf16")
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    for name, parameter in copy.named_parameters():
        assert torch.equal(parameter, kept[name].to(torch.bfloat16)), name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, kept[name]), name
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (copy.get_input_embeddings().weight is copy.get_output_embeddings().weight) is tied
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.isfinite(copy(ids).logits).all()


def test_weights_in_int8(pico_path: Callable[[str], Path]) -> None:
    model = load_model(str(pico_path("llama"))).model
    copy = perturbed(model, "int8")
    for (name, before), after in zip(model.named_parameters(), copy.parameters(), strict=True):
        if before.ndim != 2:
            assert torch.equal(before, after), name
            continue
        step = (before.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-12)  # a row of zeros stays
        assert ((after - before).abs() <= step / 2 + 1e-7).all(), name
        assert torch.allclose((after / step).round() * step, after, atol=1e-6), name
        assert not torch.equal(before, after), name


def test_auto_is_bf16_unless_the_model_is_in_16_bits(pico_path: Callable[[str], Path]) -> None:
    model = load_model(str(pico_path("llama"))).model
    assert resolve_arithmetic(model, "auto") == "bf16"
    assert resolve_arithmetic(perturbed(model, "bf16"), "auto") == "int8"
    assert resolve_arithmetic(model, "int8") == "int8"


@pytest.mark.parametrize(("to", "steps"), [("int8", 127), ("int4", 7)])
def test_weights_are_rounded_in_place(to: Any, steps: int, pico_path: Callable[[str], Path]) -> None:
    model = load_model(str(pico_path("gemma3"))).model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    round_weights(model, to)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            step = (before[name].abs().amax(dim=1, keepdim=True) / steps).clamp_min(1e-12)
            torch.testing.assert_close(parameter, (before[name] / step).round() * step)
            assert not torch.equal(parameter, before[name])
            assert all(len(row.unique()) <= 2 * steps + 1 for row in parameter)
        else:
            assert torch.equal(parameter, before[name]), name
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is words.weight


@pytest.mark.parametrize("to", ["bfloat16", "float16"])
def test_weights_of_sixteen_bits_are_computed_as_before(to: Any, pico_path: Callable[[str], Path]) -> None:
    model = load_model(str(pico_path("llama"))).model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    round_weights(model, to)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        wanted = before[name].to(getattr(torch, to)).float() if parameter.ndim == 2 else before[name]
        assert torch.equal(parameter, wanted), name
