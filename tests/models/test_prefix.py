"""A prefix in every layer against a cache filled beforehand, PEFT's prefix, plain decoding and plain scores."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from posttrain.errors import PosttrainError
from posttrain.inference.decode import decode
from posttrain.inference.plain import TokenPair
from posttrain.inference.protocol import Usage
from posttrain.inference.scoring import score
from posttrain.inference.support import support, taking_masks, warn
from posttrain.models.added import added_to, attach
from posttrain.models.curvature import Example, fisher
from posttrain.models.load import load_model
from posttrain.models.prefix import EAGER, SDPA, Prefix, Site
from tests.inference.test_decode import NO_STOP, PROMPTS, reference
from tests.inference.test_scoring import close, like_mmlu, plainly, spread
from tests.pico import FAMILIES, VOCABULARY, config

P = 5
SETTINGS: dict[str, Any] = {
    "tokens": P,
    "projection": "none",
    "projection_size": 12,
    "dropout": 0.1,
    "init_scale": 1.0,
    "seed": 0,
}
POCKET = [
    TokenPair([*range(40, 40 + shared), 200 + i], [300 + j, 301 + j])
    for shared in (12, 30)
    for i in range(3)
    for j in range(3)
]
IDS = torch.randint(10, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def made(family: str, attention: str = "sdpa") -> Any:
    """A pico model with spread weights; encoders and what takes no prefix, too."""
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    two: dict[str, Any] = small | {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "bert":
            model: Any = transformers.BertForSequenceClassification(transformers.BertConfig(**two))
        elif family == "bloom":
            model = transformers.BloomForCausalLM(transformers.BloomConfig(**small, n_layer=2, n_head=4))
        elif family == "albert":
            model = transformers.AlbertForMaskedLM(transformers.AlbertConfig(**two, embedding_size=16))
        elif family == "t5":
            sizes = {"d_model": 32, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 4}
            model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCABULARY, **sizes))
        else:
            model = transformers.AutoModelForCausalLM.from_config(config(family), dtype=torch.float32)
            model.set_attn_implementation(attention)
    return spread(model, 4.0)


def with_prefix(model: Any, **settings: Any) -> Any:
    model = copy.deepcopy(model)
    attach(model, Prefix(model, {**SETTINGS, **settings}))
    return model.eval()


def prefix_of(model: Any) -> Prefix:
    added = added_to(model)
    assert isinstance(added, Prefix)
    return added


def as_the_original(table: Tensor, config: Any, rows: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (rows, G, P, D) of each layer from the table (P, W), step by step as THUDM's get_prompt does."""
    numbers = config.get_text_config()
    layers, heads = numbers.num_hidden_layers, numbers.num_attention_heads
    groups = numbers.to_dict().get("num_key_value_heads") or heads
    past = table[None].expand(rows, -1, -1).view(rows, P, layers * 2, groups, numbers.hidden_size // heads)
    pairs = torch.split(past.permute(2, 1, 0, 3, 4), 2)  # one (2, P, rows, G, D) per layer
    return [(each[0].permute(1, 2, 0, 3), each[1].permute(1, 2, 0, 3)) for each in pairs]


def filled(model: Any, rows: int) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(as_the_original(prefix_of(model).table(), model.config, rows)):
        cache.update(key, value, layer)
    return cache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_equals_a_cache_filled_beforehand_with_positions_from_0(family: str, attention: str) -> None:
    base = made(family, attention)
    model = with_prefix(base)
    positions, seen = torch.arange(9).expand(2, -1), torch.ones(2, P + 9, dtype=torch.long)
    expected = base(IDS, past_key_values=filled(model, 2), position_ids=positions, attention_mask=seen).logits
    found = model(IDS).logits
    assert (found - expected).abs().max() <= 1e-5
    assert (found - base(IDS).logits).abs().max() > 0.1  # and it is not nothing


@torch.no_grad()
def test_every_token_sees_the_prefix_beyond_a_sliding_window() -> None:
    base = made("gemma3")
    model = with_prefix(base)
    ids = torch.randint(10, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    back = torch.arange(40)[:, None] - torch.arange(40)
    masks = {}
    for kind, window in (("full_attention", 99), ("sliding_attention", base.config.sliding_window)):
        own = (back >= 0) & (back < window)
        masks[kind] = torch.cat([torch.ones(40, P, dtype=torch.bool), own], 1).expand(2, 1, -1, -1)
    expected = base(
        ids, past_key_values=filled(model, 2), position_ids=torch.arange(40).expand(2, -1), attention_mask=masks
    ).logits
    assert (model(ids).logits - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_peft_differs_by_the_shift_of_positions_and_by_nothing_else(family: str) -> None:
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    base = made(family)
    model = with_prefix(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = get_peft_model(
            copy.deepcopy(base), PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=P)
        ).eval()
        other.prompt_encoder["default"].embedding.weight.copy_(prefix_of(model).table())
        theirs = other(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    shifted = model(IDS, position_ids=torch.arange(P, P + 9).expand(2, -1)).logits
    assert (shifted - theirs).abs().max() <= 1e-5
    difference = (model(IDS).logits - theirs).abs().max()
    assert difference > 1e-2, "learned positions and rotations alike tell where a token stands"


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_cache_and_padding_equals_the_whole_text_each_time(family: str) -> None:
    model = with_prefix(made(family))
    expected = [reference(model, prompt, NO_STOP, 6) for prompt in PROMPTS]
    assert sum(clear for _, clear in expected) >= 10
    usage = Usage()
    answers = decode(model, PROMPTS, stop=NO_STOP, pad_id=0, max_new_tokens=6, usage=usage)
    assert not usage.plain_reason
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + [*prompt] for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    for i, (wanted, clear) in enumerate(expected):
        assert answers[i] == wanted or not clear
        assert generated[i, width:].tolist() == wanted.ids or not clear


@pytest.mark.parametrize("family", [*FAMILIES, "llama-eager"])
def test_scores_with_shared_prefixes_equal_plain_passes(family: str) -> None:
    """The trial of the engine compares a model with itself: here the plain passes are the test's own, and another
    model's scores (without the prefix) are far off."""
    base = made(family.removesuffix("-eager"), "eager" if family.endswith("eager") else "sdpa")
    model = with_prefix(base)
    pairs = like_mmlu(40, 2)
    before = model.config._attn_implementation
    found = score(model, pairs, usage=Usage())
    assert support(model, 80).kind == "flat"
    assert model.config._attn_implementation == before
    tables = plainly(model, pairs)
    close(found, pairs, tables)
    without = plainly(base, pairs[:4])
    assert max(float((a - b).abs().max()) for a, b in zip(tables, without, strict=False)) > 0.1


@torch.no_grad()
def test_it_cannot_be_left_out_unnoticed() -> None:
    model = with_prefix(made("llama"))
    with taking_masks(model, warn):
        assert model.config._attn_implementation == SDPA
    expected = model(IDS).logits
    model.set_attn_implementation("sdpa")
    with pytest.raises(PosttrainError, match="set to sdpa, which would leave out its prefix"):
        model(IDS)
    with prefix_of(model).switched_off():
        assert torch.equal(model(IDS).logits, made("llama")(IDS).logits)
    model.set_attn_implementation(SDPA)
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("family", [*FAMILIES, "bert"])
@torch.no_grad()
def test_switched_off_is_the_model_itself_and_copies_are_independent(family: str) -> None:
    base = made(family)
    model = with_prefix(base)
    expected = model(IDS).logits
    with prefix_of(model).switched_off():
        assert torch.equal(model(IDS).logits, base(IDS).logits)
    assert torch.equal(model(IDS).logits, expected)
    copied = copy.deepcopy(model)
    prefix_of(model).embedding.weight.zero_()
    assert torch.equal(copied(IDS).logits, expected)
    assert not torch.equal(model(IDS).logits, expected)
    with prefix_of(copied).switched_off():
        assert torch.equal(copied(IDS).logits, base(IDS).logits)
        assert not torch.equal(model(IDS).logits, base(IDS).logits)


def test_a_copy_can_be_made_between_forward_and_backward_pass() -> None:
    model = with_prefix(made("llama"))
    loss = model(IDS).logits.square().sum()
    copied = copy.deepcopy(model)
    loss.backward()
    assert torch.equal(copied(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_an_encoder_sees_its_prefix_as_more_tokens_without_position() -> None:
    """BERT's attention by hand: a softmax over prefix and real keys, masked where a row is padded."""
    base = made("bert")
    model = with_prefix(base)
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    whole = model(IDS, attention_mask=mask).logits
    alone = model(IDS[1:, :5]).logits
    assert (whole[1] - alone[0]).abs().max() <= 1e-5
    states = base.bert.embeddings(IDS)
    for layer, (keys, values) in zip(
        base.bert.encoder.layer, as_the_original(prefix_of(model).table(), base.config, 2)
    ):
        own = layer.attention.self
        q, k, v = (part(states).view(2, 9, 4, 8).transpose(1, 2) for part in (own.query, own.key, own.value))
        weights = (q @ torch.cat([keys, k], 2).transpose(2, 3) / 8**0.5).softmax(-1)
        inside = (weights @ torch.cat([values, v], 2)).transpose(1, 2).flatten(2)
        attended = layer.attention.output(inside, states)
        states = layer.output(layer.intermediate(attended), attended)
    by_hand = base.classifier(base.bert.pooler(states))
    assert (model(IDS).logits - by_hand).abs().max() <= 1e-5


@pytest.mark.parametrize("projection", ["none", "v2"])
def test_gradients_are_the_same_when_activations_are_recomputed(projection: str) -> None:
    """Two forward passes before the backward pass, as of a preferred and a rejected answer, with dropout."""

    def gradient(recomputed: bool) -> dict[str, Tensor]:
        model = with_prefix(made("llama"), projection=projection, dropout=0.5).train()
        if recomputed:
            model.activation_checkpointing_enable()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            loss = model(IDS).logits.log_softmax(-1)[..., 7].sum() - model(IDS[:1, :4]).logits.square().sum()
            loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, again = gradient(False), gradient(True)
    parts = 1 if projection == "none" else 5
    assert len(plain) == parts
    for name, expected in plain.items():
        assert expected.abs().max() > 0
        assert torch.allclose(again[name], expected, rtol=1e-4, atol=1e-5), name


def test_dropout_is_of_each_row_and_in_training_only() -> None:
    model = with_prefix(made("llama"), tokens=400, dropout=0.25)
    layer = model.model.layers[0].self_attn._modules["posttrain_prefix"]
    prefix = prefix_of(model)
    q, k = torch.zeros(2, 4, 1, 8), torch.zeros(2, 2, 1, 8)
    prefix.renew(model, ())
    keys, _, _ = layer.before(q, k, k, None, True)
    assert torch.equal(keys[0], keys[1])
    assert torch.equal(keys[0, :, :400], prefix.layers[0][0])
    model.train()
    torch.manual_seed(0)
    keys, _, _ = layer.before(q, k, k, None, True)
    dropped = keys[:, :, :400] == 0
    assert 0.22 < float(dropped.float().mean()) < 0.28
    assert not torch.equal(dropped[0], dropped[1])
    kept = keys[0, :, :400][~dropped[0]]
    assert torch.allclose(kept, prefix.layers[0][0][~dropped[0]] / 0.75)  # what is left is scaled up
    torch.manual_seed(0)
    again, _, _ = layer.before(q, k, k, None, True)
    assert torch.equal(again, keys)


def test_shapes_and_numbers_by_hand() -> None:
    model = with_prefix(made("llama"))
    prefix = prefix_of(model)
    assert prefix.sites == [Site(f"model.layers.{i}.self_attn", 2, 8, 8) for i in range(2)]
    assert prefix.embedding.weight.shape == (P, 2 * 2 * 2 * 8)  # layers, key and value, heads, width
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"posttrain_added.embedding.weight"}
    v1 = prefix_of(with_prefix(made("llama"), projection="v1"))
    assert [tuple(t.shape) for t in v1.to_save().values()] == [(P, 12), (12, 12), (12,), (64, 12), (64,)]
    v2 = prefix_of(with_prefix(made("llama"), projection="v2"))
    assert [tuple(t.shape) for t in v2.to_save().values()] == [(P, 64), (12, 64), (12,), (64, 12), (64,)]
    assert v2.trans is not None
    first, first_bias, last, last_bias = list(v2.trans.parameters())
    hidden = torch.tanh(v2.embedding.weight @ first.T + first_bias)
    assert torch.allclose(v2.table(), hidden @ last.T + last_bias, atol=1e-6)


def test_the_start_is_the_originals_times_its_scale() -> None:
    wide = prefix_of(with_prefix(made("llama"), tokens=200)).table().detach()
    assert wide.std() == pytest.approx(1.0, abs=0.05)
    assert wide.mean() == pytest.approx(0.0, abs=0.05)
    for projection in ("none", "v1", "v2"):
        one, tenth = (prefix_of(with_prefix(made("llama"), projection=projection, init_scale=s)) for s in (1, 0.1))
        assert torch.allclose(tenth.table(), one.table() * 0.1, atol=1e-6)


@torch.no_grad()
def test_a_model_in_half_precision_keeps_its_prefix_in_float32() -> None:
    model = with_prefix(made("llama").bfloat16())
    assert prefix_of(model).embedding.weight.dtype == torch.float32
    exact = with_prefix(made("llama"))
    found, expected = model(IDS).logits.float(), exact(IDS).logits
    assert (found - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("bloom", "does not go through transformers' interface"),
        ("t5", "an encoder and a decoder"),
        ("albert", "layers share one attention module"),
    ],
)
def test_what_takes_no_prefix_says_why(family: str, why: str) -> None:
    model = made(family)
    before = model.config._attn_implementation
    with pytest.raises(PosttrainError, match=why):
        attach(model, Prefix(model, SETTINGS))
    assert model.config._attn_implementation == before


def test_eager_stays_eager() -> None:
    assert with_prefix(made("gemma3", "eager")).config._attn_implementation == EAGER
    assert made("gemma3", "eager").config._attn_implementation == "eager"


def test_scores_of_pocket_equal_plain_passes() -> None:
    """The model of the studies, with questions that share their beginnings."""
    loaded = load_model("pocket:chat", device="cpu")
    without = plainly(loaded.model, POCKET)
    attach(loaded.model, Prefix(loaded.model, SETTINGS))
    model = loaded.model.eval()
    tables = plainly(model, POCKET)
    close(score(model, POCKET, usage=Usage()), POCKET, tables)
    assert max(float((a - b).abs().max()) for a, b in zip(tables, without, strict=True)) > 0.1


@pytest.mark.parametrize("kind", ["empirical", "sampled"])
def test_gradients_of_single_rows_together_and_one_by_one(kind: Any) -> None:
    """What penalties measure by: `torch.func` swaps the table for the rows' own."""
    model = with_prefix(made("llama"), projection="v1")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    examples = [Example(row[:-1], torch.tensor([3, 7]), row[[4, 8]]) for row in IDS]
    together = fisher(model, parameters, examples, kind=kind)
    single = fisher(model, parameters, examples, kind=kind, chunk_rows=1)
    assert together.chunked
    assert not single.chunked
    for name, expected in single.diagonal.items():
        assert expected.max() > 0
        assert torch.allclose(together.diagonal[name], expected, rtol=1e-3, atol=1e-8), name
    model(IDS).logits.sum().backward()  # and nothing of torch.func stays behind
