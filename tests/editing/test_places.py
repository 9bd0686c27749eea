"""Where the parts of layers are found, for architectures of many kinds; names of modules say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from posttrain.editing.places import KINDS, auto_window, find_places, window_of
from posttrain.editing.sites import find_sites
from posttrain.errors import PosttrainError
from posttrain.models.load import load_model
from tests.pico import FAMILIES

COMMON: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
HEADS: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA: dict[str, Any] = {
    **COMMON, **HEADS, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip


def made(config: Any) -> Any:
    torch.manual_seed(0)
    return t.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_parts_of_every_layer_are_found(pico_path: Callable[[str], Path], family: str) -> None:
    model = load_model(str(pico_path(family)), device="cpu").model
    places = find_places(find_sites(model), KINDS)
    mlp, attn = ("mlp.c_proj", "attn.c_proj") if family == "gpt2" else ("mlp.down_proj", "self_attn.o_proj")
    assert places.mlp == tuple((f"{layer}.{mlp}",) for layer in places.layers)
    assert places.attn == tuple((f"{layer}.{attn}",) for layer in places.layers)
    assert len(places.layers) == 2
    assert places.names("state", 1) == [places.layers[1]]


@pytest.mark.parametrize(
    ("config", "mlp", "attn"),
    [
        pytest.param(t.Olmo2Config(**LLAMA), "mlp.down_proj", "self_attn.o_proj", id="norms behind the parts"),
        pytest.param(
            t.GPTNeoXConfig(**COMMON, **HEADS, hidden_size=32, intermediate_size=64, max_position_embeddings=64),
            "mlp.dense_4h_to_h", "attention.dense", id="both parts read the same",
        ),
        pytest.param(
            t.FalconConfig(**COMMON, **HEADS, hidden_size=32),
            "mlp.dense_4h_to_h", "self_attention.dense", id="one part is added to the other in place",
        ),
        pytest.param(
            t.BloomConfig(**COMMON, hidden_size=32, n_layer=3, n_head=4),
            "mlp.dense_4h_to_h", "self_attention.dense", id="the residual is added within the part",
        ),
        pytest.param(
            t.GraniteConfig(**LLAMA, residual_multiplier=0.3), "mlp.down_proj", "self_attn.o_proj", id="a factor",
        ),
        pytest.param(
            t.MptConfig(vocab_size=64, d_model=32, n_heads=4, n_layers=3), "ffn.down_proj", "attn.out_proj", id="other names",
        ),
    ],
)  # fmt: skip
def test_layers_of_other_kinds(config: Any, mlp: str, attn: str) -> None:
    places = find_places(find_sites(made(config)), KINDS)
    assert places.mlp == tuple((f"{layer}.{mlp}",) for layer in places.layers)
    assert places.attn == tuple((f"{layer}.{attn}",) for layer in places.layers)


def test_names_say_nothing() -> None:
    model = made(t.LlamaConfig(**LLAMA))
    for layer in model.model.layers:
        layer.self_attn.xyz = layer.self_attn.o_proj
        del layer.self_attn.o_proj
        layer.self_attn.__class__ = type("Renamed", (type(layer.self_attn),), {"o_proj": property(lambda own: own.xyz)})
    places = find_places(find_sites(model), KINDS)
    assert places.attn[0] == ("model.layers.0.self_attn.xyz",)


def test_the_part_around_an_adapter_is_meant() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(made(t.LlamaConfig(**LLAMA)), LoraConfig(target_modules=["down_proj", "o_proj"], r=2))
    places = find_places(find_sites(adapted), KINDS)
    assert places.mlp[0] == ("model.layers.0.mlp.down_proj",)
    assert places.attn[0] == ("model.layers.0.self_attn.o_proj",)


def test_what_cannot_be_traced() -> None:
    experts = t.Qwen3MoeConfig(**LLAMA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)
    sites = find_sites(made(experts))
    with pytest.raises(PosttrainError, match=r"layer 0 cannot be edited.*routed experts.*--set kinds=\[state\]"):
        find_places(sites, KINDS)
    assert find_places(sites, ["state"]).mlp == ((),) * 3
    both = t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    torch.manual_seed(0)
    with pytest.raises(PosttrainError, match="is an encoder and a decoder"):
        find_sites(t.T5ForConditionalGeneration(both).eval())


def test_windows() -> None:
    assert [auto_window(n) for n in (1, 5, 6, 9, 12, 24, 28, 30, 48)] == [1, 1, 3, 3, 3, 7, 9, 10, 10]
    assert list(window_of(18, 10, 48)) == list(range(13, 23))  # as in the paper's code: [l - 5, l + 5)
    assert list(window_of(1, 10, 48)) == list(range(6))
    assert list(window_of(47, 10, 48)) == list(range(42, 48))
    assert list(window_of(2, 3, 6)) == [1, 2, 3]
    assert list(window_of(2, 1, 6)) == [2]
