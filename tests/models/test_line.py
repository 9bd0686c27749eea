"""Rows read as one line against rows read as rows: losses and all gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.models import line as lines
from posttrain.models.head_loss import chunked_nll, plain_head, states_at
from posttrain.models.line import lay_line, line_for, takes_lines
from tests.pico import VOCABULARY, pico


def batch() -> tuple[Tensor, Tensor]:
    """Four rows that begin alike, two of them longer alike, padded; their second halves are asked."""
    ids = torch.zeros(4, 20, dtype=torch.long)
    asked = torch.zeros(4, 20, dtype=torch.bool)
    draw = torch.Generator().manual_seed(1)
    for row, length in enumerate((12, 20, 14, 13)):
        ids[row, :length] = torch.randint(8, VOCABULARY, (length,), generator=draw)
        asked[row, length // 2 : length] = True
    ids[1:, :7] = ids[0, :7]
    ids[2, :9] = ids[1, :9]
    asked[3, 2] = True  # within what is shared
    return ids, asked


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LEAST", 0)


def load(family: str, folder: Path, **changed: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(pico(family, folder), dtype=torch.float32, **changed)
    return model.train()


def learned(model: Any, ids: Tensor, asked: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Nats of the asked places with unequal weights, and every gradient."""
    model.zero_grad()
    head = plain_head(model)
    assert head is not None
    nats = chunked_nll(states_at(model, ids, asked), head, ids[asked])
    torch.autograd.backward((nats * torch.linspace(0.1, 2.0, len(nats))).sum())
    return nats.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "qwen3", "glm", "mistral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_and_gradients_are_those_of_the_rows(
    family: str, attention: str, tmp_path: Path, any_size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(family, tmp_path, attn_implementation=attention)
    ids, asked = batch()
    line = line_for(model, ids, asked)
    assert line is not None
    assert line.ids.numel() == 20 + (12 - 7) + (14 - 9) + (13 - 7)
    found, own = learned(model, ids, asked)
    monkeypatch.setattr(lines, "WORTH", 0.0)
    assert line_for(model, ids, asked) is None
    expected, slopes = learned(model, ids, asked)
    assert torch.allclose(found, expected, atol=1e-5)
    assert own.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert torch.allclose(own[name], slope, atol=1e-5 * max(1.0, float(slope.abs().max()))), name


def test_an_adapter_is_read_so_too(tmp_path: Path, any_size: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_peft_model(load("llama", tmp_path), LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    ids, asked = batch()
    assert line_for(model, ids, asked) is not None
    found, own = learned(model, ids, asked)
    monkeypatch.setattr(lines, "WORTH", 0.0)
    expected, slopes = learned(model, ids, asked)
    assert torch.allclose(found, expected, atol=1e-5)
    assert all(torch.allclose(own[n], slopes[n], atol=1e-4 * max(1.0, float(slopes[n].abs().max()))) for n in slopes)


@pytest.mark.parametrize(
    ("family", "changed"),
    [("gemma3", {}), ("mistral", {"sliding_window": 8}), ("gpt2", {})],  # gpt2 drops at random when it trains
)
def test_a_model_whose_tokens_see_otherwise_reads_rows(
    family: str, changed: dict[str, Any], tmp_path: Path, any_size: None
) -> None:
    assert line_for(load(family, tmp_path, **changed), *batch()) is None


def test_gpt2_without_dropout_counts_positions_as_told(tmp_path: Path, any_size: None) -> None:
    model = load("gpt2", tmp_path).eval()
    ids, asked = batch()
    assert line_for(model, ids, asked) is not None


def test_a_model_that_ignores_the_mask_is_found_out(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    own = model.model.forward
    model.model.forward = lambda **inputs: own(**{k: v for k, v in inputs.items() if k != "attention_mask"})
    assert not takes_lines(model)


def test_small_models_and_rows_that_share_nothing_are_left_alone(tmp_path: Path, any_size: None) -> None:
    model = load("llama", tmp_path)
    ids, asked = batch()
    assert line_for(model, ids[1:2], asked[1:2]) is None
    assert line_for(model, ids, torch.zeros_like(asked)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert line_for(model, ids, asked) is None


def test_models_below_the_size_are_left_alone(tmp_path: Path) -> None:
    assert line_for(load("llama", tmp_path), *batch()) is None


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_every_token_sees_its_own_row_up_to_itself(rows: list[list[int]]) -> None:
    width = max(map(len, rows))
    ids = torch.tensor([row + [9] * (width - len(row)) for row in rows])
    asked = torch.tensor([[t < len(row) for t in range(width)] for row in rows])
    line = lay_line(ids, asked)
    places = iter(line.asked.tolist())
    for row in rows:
        for length in range(1, len(row) + 1):
            at = next(places)
            seen = (line.mask[0, 0, at] == 0).nonzero()[:, 0].tolist()
            assert [int(line.ids[0, i]) for i in seen] == row[:length]
            assert [int(line.positions[0, i]) for i in seen] == list(range(length))
    assert line.ids.numel() == len({tuple(row[: t + 1]) for row in rows for t in range(len(row))})
