"""An adapter that uses layers of its base twice becomes a model whose layers are its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from posttrain.models.export import export_model
from posttrain.models.load import load_model
from posttrain.models.verify import verify_model
from tests.models.test_export import IDS, logits, plain
from tests.models.test_merge_adapter import PicoPath, moved
from tests.training.tiny import load


def by_hand(pico_path: PicoPath, family: str, order: list[int]) -> Tensor:
    """What the base says with its layers in this order."""
    model = load(pico_path, family).model
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layers[i] for i in order)
    model.config.num_hidden_layers = len(order)
    if family != "llama":
        model.config.layer_types = [model.config.layer_types[i] for i in order]
    with torch.no_grad():
        said: Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return said


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(("spans", "order"), [([[0, 2], [1, 2]], [0, 1, 1]), ([[1, 2], [0, 1]], [1, 0])])
def test_an_exported_model_has_the_layers_as_its_own(
    pico_path: PicoPath, tmp_path: Path, family: str, spans: list[list[int]], order: list[int]
) -> None:
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], layer_replication=spans)
    made = moved(pico_path, family, config)
    made.save_pretrained(tmp_path / "adapter")
    beside = load_model(str(tmp_path / "adapter"), device="cpu").model
    expected = logits(beside)
    with beside.disable_adapter():
        torch.testing.assert_close(logits(beside), by_hand(pico_path, family, order), atol=1e-6, rtol=0)
    export_model(str(tmp_path / "adapter"), tmp_path / "out")
    model = plain(tmp_path / "out")
    torch.testing.assert_close(logits(model), expected, atol=3e-5, rtol=0)
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == len(order)
    kept = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert kept is load(pico_path, family).model.config.tie_word_embeddings
    assert not any(check.ok is False for check in verify_model(str(tmp_path / "out")))
