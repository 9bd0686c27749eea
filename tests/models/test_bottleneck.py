"""Where bottleneck adapters sit, what they compute, and that the model is itself without them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.models.added import added_to, attach
from posttrain.models.bottleneck import Bottleneck, Bottlenecks, adapted_modules
from posttrain.tuners._parts import norms_of
from tests.inference.test_scoring import spread
from tests.models.test_prefix import IDS, made
from tests.pico import FAMILIES, VOCABULARY

SETTINGS: dict[str, Any] = {
    "where": "both",
    "reduction": 4,
    "size": None,
    "activation": "gelu",
    "dropout": 0.0,
    "init_std": 0.02,
    "modules": None,
    "seed": 0,
}


def encoder(kind: str) -> Any:
    """Encoders with a head of classes: three layouts."""
    heads: dict[str, Any] = {"vocab_size": VOCABULARY, "num_attention_heads": 4}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
    tokens: dict[str, Any] = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    configs: dict[str, Any] = {
        "bert": transformers.BertConfig(**heads, **layers),
        "distilbert": transformers.DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64
        ),
        "modernbert": transformers.ModernBertConfig(**heads, **layers, **tokens),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return spread(transformers.AutoModelForSequenceClassification.from_config(configs[kind]), 4.0)


def with_adapters(model: Any, *, moving: tuple[str, ...] = (), **settings: Any) -> Any:
    model = copy.deepcopy(model)
    attach(model, Bottlenecks(model, {**SETTINGS, **settings}), moving=moving)
    return model.eval()


def moved(model: Any) -> Any:
    """Adapters that do something."""
    added = added_to(model)
    assert added is not None
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in added.named_parameters():
            if "up." in name:
                parameter.normal_()
    return model


SUBLAYERS = {
    **dict.fromkeys(FAMILIES, ("model.layers.{}.self_attn", "model.layers.{}.mlp")),
    "gpt2": ("transformer.h.{}.attn", "transformer.h.{}.mlp"),
    # the residual is added inside of BERT's sub-layers, so behind their output matrices
    "bert": ("bert.encoder.layer.{}.attention.output.dense", "bert.encoder.layer.{}.output.dense"),
    "distilbert": ("distilbert.transformer.layer.{}.attention", "distilbert.transformer.layer.{}.ffn"),
    "modernbert": ("model.layers.{}.attn", "model.layers.{}.mlp"),
}


def model_of(family: str) -> Any:
    return made(family) if family in FAMILIES else encoder(family)


@pytest.mark.parametrize("family", SUBLAYERS)
@torch.no_grad()
def test_starts_as_the_model_moves_away_and_comes_back(family: str) -> None:
    base = model_of(family)
    model = with_adapters(base)
    attention, feeding = SUBLAYERS[family]
    assert adapted_modules(base) == [part.format(i) for i in range(2) for part in (attention, feeding)]
    assert adapted_modules(base, "mlp") == [feeding.format(i) for i in range(2)]
    assert adapted_modules(base, "attention") == [attention.format(i) for i in range(2)]
    expected = base(IDS).logits
    assert torch.equal(model(IDS).logits, expected)
    away = moved(model)(IDS).logits
    assert not torch.allclose(away, expected, atol=1e-5)
    added = added_to(model)
    assert added is not None
    with added.switched_off():
        assert torch.equal(model(IDS).logits, expected)
    copied = copy.deepcopy(model)
    for parameter in added.parameters():
        parameter.zero_()
    assert torch.equal(copied(IDS).logits, away)
    assert torch.equal(model(IDS).logits, expected)


@torch.no_grad()
def test_equals_a_layer_written_out() -> None:
    """Llama's layers by hand: h + A(attention(norm(h))), then h + A(mlp(norm(h)))."""
    base = made("llama")
    model = moved(with_adapters(base, size=3, activation="relu"))
    added = added_to(model)
    assert isinstance(added, Bottlenecks)
    adapters: list[Any] = list(added.adapters)

    def through(adapter: Any, states: Tensor) -> Tensor:
        inside = (states @ adapter.down.weight.T + adapter.down.bias).clamp_min(0)
        change: Tensor = inside @ adapter.up.weight.T + adapter.up.bias
        return states + change

    states = base.model.embed_tokens(IDS)
    rotation = base.model.rotary_emb(states, torch.arange(9)[None])
    for number, layer in enumerate(base.model.layers):
        attended, _ = layer.self_attn(layer.input_layernorm(states), position_embeddings=rotation)
        states = states + through(adapters[2 * number], attended)
        fed = layer.mlp(layer.post_attention_layernorm(states))
        states = states + through(adapters[2 * number + 1], fed)
    by_hand = base.lm_head(base.model.norm(states))
    assert (model(IDS).logits - by_hand).abs().max() <= 1e-5


def test_parameters_by_hand_and_nothing_else_moves() -> None:
    model = with_adapters(made("llama"), reduction=4)  # d = 32, m = 8
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(sizes.values()) == 4 * (2 * 8 * 32 + 32 + 8)
    assert all(name.startswith("posttrain_added.adapters.") for name in sizes)
    model(IDS).logits.sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(sizes)


def test_the_bottleneck_is_at_least_one_wide_and_drawn_from_its_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (with_adapters(made("llama"), reduction=1000, seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    downs = [m.posttrain_added.adapters[0].down.weight for m in (first, again, other)]
    assert downs[0].shape == (1, 32)
    assert torch.equal(downs[0], downs[1])
    assert not torch.equal(downs[0], downs[2])
    assert downs[0].abs().max() <= 0.04  # cut at two standard deviations


def test_norms_move_and_are_put_back_when_switched_off() -> None:
    base = made("llama")
    names = norms_of(base)
    assert len(names) == 2 * 2 + 1
    model = with_adapters(base, moving=tuple(names))
    moving = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(names) < moving
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).mul_(2.0)
        away = model(IDS).logits
        added = added_to(model)
        assert added is not None
        with added.switched_off():
            assert torch.equal(model(IDS).logits, base(IDS).logits)
        assert torch.equal(model(IDS).logits, away)
        assert not torch.allclose(away, base(IDS).logits, atol=1e-3)


def test_a_new_head_moves_too_and_a_language_models_output_matrix_does_not() -> None:
    model = with_adapters(encoder("bert"))
    moving = {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("posttrain_added")}
    assert moving == {"classifier.weight", "classifier.bias"}
    qwen = with_adapters(made("qwen3"))  # its lm_head is a matrix of its own
    assert not qwen.lm_head.weight.requires_grad


def test_dropout_in_training_only() -> None:
    model = moved(with_adapters(made("llama"), dropout=0.5))
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


def test_modules_can_be_named_and_what_is_not_found_is_listed() -> None:
    base = made("llama")
    assert adapted_modules(base, "both", ["1.mlp", "o_proj"]) == [
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp",
    ]
    with pytest.raises(PosttrainError, match=r"no module is called feed; .*self_attn.*mlp"):
        adapted_modules(base, "both", ["feed", "mlp"])
    opt = transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    model: Any = transformers.OPTForCausalLM(opt).eval()
    with pytest.raises(PosttrainError, match=r"name modules in tuner.modules; there are self_attn, .*fc2"):
        adapted_modules(model)
    adapted = with_adapters(model, modules=["self_attn", "fc2"])
    with torch.no_grad():
        assert torch.equal(adapted(IDS).logits, model(IDS).logits)
        assert not torch.allclose(moved(adapted)(IDS).logits, model(IDS).logits, atol=1e-5)
    with pytest.raises(PosttrainError, match="gives no hidden states"):
        with_adapters(base, modules=["layers"])


def test_half_precision() -> None:
    model = moved(with_adapters(made("llama").bfloat16()))
    adapter = model.posttrain_added.adapters[0]
    assert isinstance(adapter, Bottleneck)
    assert adapter.down.weight.dtype == torch.float32
    assert model(IDS).logits.dtype == torch.bfloat16
