"""Adapters as PEFT writes them: with the base's matrices in them, with a vocabulary of another size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.models.load import load_model
from tests.training.tiny import load

PicoPath = Callable[[str], Path]
IDS = torch.tensor([[1, 4, 70, 80, 90, 2, 5, 33]])
pytestmark = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:Setting `save_embedding_layers`")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def adapter(pico_path: PicoPath, family: str, folder: Path, rows: int, **settings: Any) -> Tensor:
    """Save a moved adapter of a base that was given another vocabulary; what it says."""
    base = load(pico_path, family).model
    torch.manual_seed(0)
    if rows != base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)
    made = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape)
    made.save_pretrained(folder)
    return logits(made)


@pytest.mark.parametrize("rows", [392, 380])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"target_modules": ["q_proj"]}),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [4, 70]}),
        ("qwen3", {"target_modules": ["q_proj"]}),
        ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("gpt2", {"target_modules": ["c_attn", "wte"]}),
    ],
)
def test_a_resized_vocabulary(
    pico_path: PicoPath, tmp_path: Path, family: str, settings: dict[str, Any], rows: int
) -> None:
    expected = adapter(pico_path, family, tmp_path, rows, **settings)
    assert expected.shape[-1] == rows
    for merged in (False, True):
        model = load_model(str(tmp_path), device="cpu", adapter_merged=merged).model
        torch.testing.assert_close(logits(model), expected, atol=3e-5, rtol=0)
        assert model.config.vocab_size == rows


@pytest.mark.parametrize("family", ["qwen3"])
def test_a_shared_matrix_that_was_trained(pico_path: PicoPath, tmp_path: Path, family: str) -> None:
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    expected = adapter(pico_path, family, tmp_path, 384, **settings)
    for merged in (False, True):
        model = load_model(str(tmp_path), device="cpu", adapter_merged=merged).model
        torch.testing.assert_close(logits(model), expected, atol=3e-5, rtol=0)


def test_rows_that_the_folder_lacks(pico_path: PicoPath, tmp_path: Path) -> None:
    adapter(pico_path, "qwen3", tmp_path, 392, target_modules=["q_proj", "lm_head"])
    words = "was trained on 392 tokens, its base '.*qwen3' has 384, and the new rows of the embedding are not in it"
    with pytest.raises(PosttrainError, match=words):
        load_model(str(tmp_path), device="cpu")


def test_another_bases_matrix_is_said(pico_path: PicoPath, tmp_path: Path) -> None:
    adapter(pico_path, "llama", tmp_path, 384, target_modules=["q_proj", "lm_head"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.lm_head.base_layer.weight"
    rounded = tensors | {name: tensors[name].bfloat16().float()}
    save_file(rounded, path)
    load_model(str(tmp_path), device="cpu")  # written in half precision it is still the base's
    save_file(tensors | {name: tensors[name].roll(1, 0)}, path)
    with pytest.raises(PosttrainError, match=r"trained on another base than '.*llama': it holds another output head"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["base_model.model.lm_heads.base_layer.weight", "base_model.model.model.new.weight"])
def test_a_tensor_without_a_place_is_still_refused(pico_path: PicoPath, tmp_path: Path, name: str) -> None:
    adapter(pico_path, "llama", tmp_path, 384, target_modules=["q_proj", "lm_head"])
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path) | {name: torch.ones(3, 3)}, path)
    with pytest.raises(PosttrainError, match=f"does not fit its base .*{name}"):
        load_model(str(tmp_path), device="cpu")


def test_a_lacking_tensor_is_still_refused(pico_path: PicoPath, tmp_path: Path) -> None:
    adapter(pico_path, "llama", tmp_path, 384, target_modules=["q_proj", "lm_head"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.lm_head.lora_B.weight"]
    save_file(tensors, path)
    with pytest.raises(PosttrainError, match=r"does not fit its base .*lm_head\.lora_B"):
        load_model(str(tmp_path), device="cpu")


def test_peft_says_what_it_has_no_place_for(pico_path: PicoPath) -> None:
    """`misfits` relies on it."""
    made = get_peft_model(load(pico_path).model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    found = set_peft_model_state_dict(made, {"base_model.model.nowhere.weight": torch.ones(1)})
    assert found.unexpected_keys == ["base_model.model.nowhere.weight"]
