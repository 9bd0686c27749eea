"""The chunked path of `sft`, its terms and the answers' log-probabilities, against plain logits: losses and gradients."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.data.chat import IGNORED, Encoded
from posttrain.models import head_loss
from posttrain.objectives.sft import SftConfig, sft
from posttrain.retention.penalty.kl_to_base import KlToBaseConfig
from posttrain.training.forms import pairs, tokens
from posttrain.training.forms.base import FormSetup
from posttrain.training.forms.pairs import answer_logps
from posttrain.training.forms.tokens import TokensForm, token_batch
from posttrain.training.penalties import terms_of
from posttrain.training.reference import Reference
from tests.pico import pico, tokenizer

TEXTS = ("The capital of France is Paris.", "臺灣最高的山是玉山。", "誰寫了《哈姆雷特》？")


def rows() -> list[Encoded]:
    """Prompts of different lengths, so that supervised columns differ from row to row; one row weighs less."""
    made = []
    for i, text in enumerate(TEXTS):
        ids = [1, *tokenizer()(text)["input_ids"], 2]
        made.append(Encoded(ids, [IGNORED] * (2 + 3 * i) + ids[2 + 3 * i :], f"row {i}", weight=1.0 if i else 0.25))
    return made


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(pico("qwen3", tmp_path), dtype=torch.float32)


def gradients(model: Any, nats: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward((nats * torch.tensor([1.0, 0.5, 2.0])).sum())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, slope in one.items():
        assert torch.allclose(slope, other[name], atol=1e-5 * max(1.0, float(slope.abs().max()))), name


@pytest.mark.parametrize("freeze", [False, True], ids=["head moves", "head is frozen"])
@pytest.mark.parametrize("on", [None, "all", "old"])
def test_sft_and_kl_to_base(model: Any, on: Any, freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    start = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    if freeze:
        model.get_output_embeddings().requires_grad_(False)
    objective = SftConfig()
    terms = terms_of((KlToBaseConfig(on=on, weight=0.7),)) if on else []
    form = TokensForm(
        FormSetup(objective, partial(sft, config=objective), tokenizer(), 0, 1.0, Reference(model, start), terms)
    )
    form.device = torch.device("cpu")
    micro = form.micro_batch(rows(), [False, True, False])
    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", 1)  # 16 tokens at once: fewer than there are
    assert int((micro.tensors.targets != IGNORED).sum()) > 16
    cut = form.loss(model, micro)
    cut_gradients = gradients(model, cut.nats)
    monkeypatch.setattr(tokens, "plain_head", lambda _: None)
    whole = form.loss(model, micro)
    assert torch.allclose(cut.nats, whole.nats, atol=1e-5, rtol=1e-5)
    assert torch.equal(cut.units, whole.units)
    assert cut.metrics.keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        assert torch.allclose(cut.metrics[name], value, atol=1e-5)
    same(cut_gradients, gradients(model, whole.nats))


def test_log_probabilities_of_answers(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = token_batch(rows(), pad_id=0)
    cut, units = answer_logps(model, batch, torch.device("cpu"))
    cut_gradients = gradients(model, cut)
    monkeypatch.setattr(pairs, "plain_head", lambda _: None)
    whole, expected = answer_logps(model, batch, torch.device("cpu"))
    assert torch.allclose(cut, whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(units, expected)
    same(cut_gradients, gradients(model, whole))
