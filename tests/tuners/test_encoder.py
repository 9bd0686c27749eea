"""Every tuner on an encoder with a new head: the head moves with it, is saved with it, and padding is not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from posttrain import registry
from posttrain.config.load import check
from posttrain.errors import ConfigError
from posttrain.models.heads import load_any, load_head_model
from posttrain.models.load import LoadedModel
from posttrain.models.notes import head_modules
from posttrain.models.save import save_model
from tests.pico import VOCABULARY, tokenizer
from tests.tuners.matrix import KINDS, tried

LABELS = ("bad", "good", "so-so")
IDS = torch.tensor([[11, 12, 13, 14, 15, 16], [21, 22, 23, 0, 0, 0]])
MASK = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
TARGETS = torch.tensor([0, 2])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def fresh(encoder: Path) -> LoadedModel:
    return load_head_model(str(encoder), "sequence", LABELS, device="cpu", say=lambda _: None)


def tuned(loaded: LoadedModel, kind: str) -> Any:
    how = tried(kind)
    entry = registry.load("tuner", kind)
    return entry.function(loaded.model, check({"kind": kind, **how.settings}, entry.config, "tuner"))


def outputs(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, attention_mask=MASK).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_tuner_on_an_encoder(encoder: Path, tmp_path: Path, kind: str) -> None:
    loaded = fresh(encoder)
    names = head_modules(loaded.model)
    before = outputs(loaded.model)
    model = tuned(loaded, kind)
    moving = [n for n, p in model.named_parameters() if p.requires_grad]
    for name in names:
        assert any(name in n for n in moving), f"{name} does not move"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], tried(kind).rate / 3)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(input_ids=IDS, attention_mask=MASK).logits, TARGETS)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = outputs(model)
    assert (after - before).abs().max() > 1e-3
    alone = model(input_ids=IDS[1:, :3], attention_mask=MASK[1:, :3]).logits[0]
    torch.testing.assert_close(alone, after[1], atol=1e-5, rtol=0)
    save_model(model, loaded.tokenizer, tmp_path / "saved")
    again = load_any(str(tmp_path / "saved"), device="cpu", say=lambda _: None)
    torch.testing.assert_close(outputs(again.model), after, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning"])
def test_embeddings_hide_where_a_decoders_row_ends(pico_path: Any, kind: str) -> None:
    loaded = load_head_model(str(pico_path("llama")), "sequence", LABELS, device="cpu", say=lambda _: None)
    with pytest.raises(ConfigError, match=r"cannot see where a row ends.*prefix_tuning"):
        tuned(loaded, kind)
