"""The places that can be edited: found by a trial in every architecture, refused where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from posttrain.editing.sites import Site, Sites, find_sites, first_of
from posttrain.errors import ConfigError, PosttrainError
from tests.editing.lively import bits, changed, lively
from tests.pico import FAMILIES, VOCABULARY
from tests.training.tiny import load

PicoPath = Callable[[str], Path]

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {**LLAMA, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
GLM4_MOE = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
OPT = {
    **LLAMA,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "init_std": 0.2,
    "max_position_embeddings": 512,
}


def model_of(name: str, **settings: Any) -> Any:
    """A random model of an architecture."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    torch.random.set_rng_state(state)
    return model


def moves_as_said(sites: Sites, site: Site) -> bool:
    """Whether a change of the matrix moves its layer's output as the site says, at every token.

    The reference: dW k, with the keys k read on the way, times the factor or through the norm.
    """
    model: Any = sites.model
    ids = torch.arange(20, 29)[None]
    keys: list[Tensor] = []
    values: list[Tensor] = []
    states: list[Tensor] = []
    module = sites.module(site)
    block = model.get_submodule(sites.layers[site.layer])

    def read(_: Any, args: Any, output: Any) -> None:
        keys.append(args[0].reshape(1, 9, -1))
        values.append(output.reshape(1, 9, -1))

    handles = [
        module.register_forward_hook(read),
        block.register_forward_hook(lambda m, args, output: states.append(first_of(output))),
    ]
    delta = torch.randn(site.oriented(sites.weight(site)).shape, generator=torch.Generator().manual_seed(3)) * 0.1
    with torch.no_grad():
        model(input_ids=ids)
        sites.weight(site).add_(delta.T if site.transposed else delta)
        model(input_ids=ids)
        sites.weight(site).sub_(delta.T if site.transposed else delta)
        for handle in handles:
            handle.remove()
        expected = keys[0] @ delta.T
        if site.norm:
            norm = model.get_submodule(site.norm)
            expected = norm(values[0] + expected) - norm(values[0])
    return torch.allclose(states[1] - states[0], site.factor * expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_family_has_a_place(family: str) -> None:
    loaded = lively(family)
    before = bits(loaded.model)
    sites = find_sites(loaded.model)
    inner = "transformer.h.{}.mlp.c_proj" if family == "gpt2" else "model.layers.{}.mlp.down_proj"
    for layer in (0, 1):
        site = sites.at(layer)
        assert (site.layer, site.name, site.weight) == (layer, inner.format(layer), f"{inner.format(layer)}.weight")
        assert (site.transposed, site.inputs, site.factor) == (family == "gpt2", 128 if family == "gpt2" else 64, 1.0)
        norm = f"model.layers.{layer}.post_feedforward_layernorm"
        assert site.norm == (norm if family == "gemma3" else "")
        assert sites.at(layer - 2) is site
        assert site.oriented(sites.weight(site)).shape == (32, site.inputs)
        assert site.oriented(sites.weight(site)).data_ptr() == sites.weight(site).data_ptr()  # a view
    assert not changed(loaded.model, before)  # the trials have left nothing behind
    assert moves_as_said(sites, sites.at(0))
    assert moves_as_said(sites, sites.at(1))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_quiet_models_and_half_precision_are_told_apart_too(family: str, pico_path: PicoPath) -> None:
    """Weights of 0.02, with which feed-forward parts say a hundredth of what was read."""
    quiet = find_sites(load(pico_path, family).model)
    half = find_sites(lively(family, dtype=torch.bfloat16).model)
    for layer in (0, 1):
        assert quiet.at(layer) == half.at(layer) == find_sites(lively(family).model).at(layer)


OTHERS: dict[str, tuple[str, dict[str, Any], str, float, str]] = {
    "granite multiplies": ("Granite", {**LLAMA, "residual_multiplier": 0.22}, "mlp.down_proj", 0.22, ""),
    "opt flattens": ("OPT", OPT, "fc2", 1.0, ""),
    "olmo2 norms": ("Olmo2", LLAMA, "mlp.down_proj", 1.0, "post_feedforward_layernorm"),
    "glm4 norms": ("Glm4", {**LLAMA, "head_dim": 8}, "mlp.down_proj", 1.0, "post_mlp_layernorm"),
    "neox in parallel": ("GPTNeoX", LLAMA, "mlp.dense_4h_to_h", 1.0, ""),
    "cohere in parallel": ("Cohere", LLAMA, "mlp.down_proj", 1.0, ""),
}


@pytest.mark.parametrize(("name", "settings", "ending", "factor", "norm"), OTHERS.values(), ids=OTHERS)
def test_other_architectures(name: str, settings: dict[str, Any], ending: str, factor: float, norm: str) -> None:
    sites = find_sites(model_of(name, **settings))
    for layer in (0, 1):
        site = sites.at(layer)
        assert site.name == f"{sites.layers[layer]}.{ending}"
        assert site.factor == pytest.approx(factor, rel=1e-4)
        assert site.norm == (f"{sites.layers[layer]}.{norm}" if norm else "")
        assert moves_as_said(sites, site)


def test_tied_and_untied_heads_have_the_same_places() -> None:
    for tied in (True, False):
        model = model_of("Llama", **LLAMA, tie_word_embeddings=tied)
        sites = find_sites(model)
        assert [sites.at(layer).name for layer in (0, 1)] == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]


def test_routed_experts_are_refused_with_the_reason() -> None:
    sites = find_sites(model_of("Qwen3Moe", **EXPERTS, num_experts=4, mlp_only_layers=[0]))
    assert sites.at(0).name == "model.layers.0.mlp.down_proj"  # a dense layer
    said = r"^editor rome: layers: layer 1 cannot be edited: .*routed experts.*; choose another layer"
    for layer in (1, -1):
        with pytest.raises(PosttrainError, match=said):
            sites.at(layer, "editor rome: layers")


def test_a_dense_layer_and_a_shared_expert_are_places() -> None:
    sites = find_sites(model_of("Glm4Moe", **EXPERTS, **GLM4_MOE))
    assert [(sites.at(i).name, sites.at(i).inputs) for i in (0, 1)] == [
        ("model.layers.0.mlp.down_proj", 64),
        ("model.layers.1.mlp.shared_experts.down_proj", 16),
    ]
    assert moves_as_said(sites, sites.at(0))
    assert moves_as_said(sites, sites.at(1))


def test_a_norm_over_the_sum_is_refused_for_what_it_is() -> None:
    """OPT-350m's way: the layer's output is the norm of everything, so no vector is just added to it."""
    sites = find_sites(model_of("OPT", **OPT, do_layer_norm_before=False))
    with pytest.raises(PosttrainError, match=r"no linear module adds its output to the layer's.* norm"):
        sites.at(0)


def test_a_layer_that_does_not_exist() -> None:
    sites = find_sites(lively().model)
    for layer in (2, -3):
        with pytest.raises(
            ConfigError, match=f"editor memit: layers: there is no layer {layer}: LlamaForCausalLM has "
        ):
            sites.at(layer, "editor memit: layers")


def test_quantised_weights_are_refused() -> None:
    model = lively().model
    for name, parameter in list(model.named_parameters()):
        if "layers.1" in name and parameter.dim() == 2:
            whole = parameter.round().to(torch.int8)
            model.get_submodule(name.rpartition(".")[0]).weight = torch.nn.Parameter(whole, requires_grad=False)
    sites = Sites(model, ("model.layers.0", "model.layers.1"), ((), ("model.layers.1.mlp.down_proj",)), ())
    with pytest.raises(PosttrainError, match=r"the weights of model.layers.1.mlp.down_proj are quantised"):
        sites.at(1)


def test_a_layer_that_computes_no_numbers_is_an_error() -> None:
    model: Any = lively().model
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = float("nan")
    sites = find_sites(model)
    assert sites.at(0).layer == 0
    with pytest.raises(
        PosttrainError, match=r"LlamaForCausalLM: model.layers.1 computes numbers that are not finite; "
    ):
        sites.at(1)


def test_what_is_no_decoder() -> None:
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(PosttrainError, match="T5ForConditionalGeneration is an encoder and a decoder; editors know"):
        find_sites(transformers.T5ForConditionalGeneration(config))


def test_a_model_that_trains_is_tried_at_rest_and_goes_on_training() -> None:
    """Dropout would make the trial fail."""
    model = model_of("GPT2", **LLAMA, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5).train()
    sites = find_sites(model)
    assert sites.at(1).name == "transformer.h.1.mlp.c_proj"
    assert model.training
