"""A vector behind one layer: by hand, taken off bit by bit, saved and read again, and in every way of reading."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.inference.decode import decode
from posttrain.inference.plain import TokenPair
from posttrain.inference.protocol import Usage
from posttrain.inference.scoring import score
from posttrain.inference.support import support
from posttrain.models.added import added_to, attach, merged_added
from posttrain.models.fingerprint import weights_fingerprint
from posttrain.models.load import load_model
from posttrain.models.save import save_model
from posttrain.models.steering_vector import SteeringVector, ends_of
from tests.inference.test_decode import NO_STOP
from tests.inference.test_scoring import close
from tests.models.test_prefix import IDS, made
from tests.pico import FAMILIES

HEADER = [6, 9]
LAYERS = {**dict.fromkeys(FAMILIES, "model.layers"), "gpt2": "transformer.h"}


def steered(base: Any, family: str, *, where: str = "all", layer: int = 0, strength: float = 1.5, seed: int = 0) -> Any:
    """A copy of a model with a random vector behind one of its layers."""
    model = copy.deepcopy(base)
    settings = {"layer": layer, "module": f"{LAYERS[family]}.{layer}", "where": where}
    part = SteeringVector(model, {**settings, "header": HEADER if where == "answer" else []})
    attach(model, part)
    part.vector.data = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    part.strength = strength
    return model.requires_grad_(False).eval()


def part_of(model: Any) -> SteeringVector:
    part = added_to(model)
    assert isinstance(part, SteeringVector)
    return part


@torch.no_grad()
def by_hand(base: Any, model: Any, ids: list[int], start: int = 0) -> Tensor:
    """Logits (T, V) of a row alone, with strength * v added to the layer's output from token `start` on."""
    part, push = part_of(model), torch.zeros(len(ids), 32)
    push[start:] = part.strength * part.vector

    def add(module: Any, args: Any, output: Any) -> Any:
        return (output[0] + push, *output[1:]) if isinstance(output, tuple) else output + push

    with base.get_submodule(part.module).register_forward_hook(add):
        found: Tensor = base(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_adds_the_vector_and_comes_back_bit_by_bit(family: str) -> None:
    base = made(family)
    model = steered(base, family)
    expected, away = base(IDS).logits, model(IDS).logits
    assert torch.equal(away[0], by_hand(base, model, IDS[0].tolist()))
    assert (away - expected).abs().max() > 1e-2
    with part_of(model).switched_off():
        assert torch.equal(model(IDS).logits, expected)
    copied = copy.deepcopy(model)
    part_of(copied).strength = -1.0
    assert torch.equal(model(IDS).logits, away)  # a copy has hooks of its own
    assert torch.equal(copied(IDS).logits[1], by_hand(base, copied, IDS[1].tolist()))
    own = {name: p for name, p in model.named_parameters() if not name.startswith("posttrain_added")}
    assert all(torch.equal(p, own[name]) for name, p in base.named_parameters())


def test_llamas_layers_by_hand() -> None:
    """h1 = layer0(h0) + 1.5 v, then layer1, with nothing but the model's own parts."""
    base = made("llama")
    model = steered(base, "llama")
    with torch.no_grad():
        states = base.model.embed_tokens(IDS)
        rotation = base.model.rotary_emb(states, torch.arange(9)[None])
        for number, layer in enumerate(base.model.layers):
            attended, _ = layer.self_attn(layer.input_layernorm(states), position_embeddings=rotation)
            states = states + attended
            states = states + layer.mlp(layer.post_attention_layernorm(states))
            states = states + 1.5 * part_of(model).vector * (number == 0)
        expected = base.lm_head(base.model.norm(states))
        assert (model(IDS).logits - expected).abs().max() <= 1e-5


def test_it_computes_in_float32_in_a_bfloat16_model() -> None:
    base = made("llama").bfloat16()
    model = steered(base, "llama", strength=0.01)
    assert part_of(model).vector.dtype == torch.float32
    seen: list[Tensor] = []
    model.model.layers[0].register_forward_hook(lambda m, a, o: seen.append(o))
    base.model.layers[0].register_forward_hook(lambda m, a, o: seen.append(o))
    with torch.no_grad():
        base(IDS)
        model(IDS)
    assert seen[1].dtype == torch.bfloat16
    assert torch.equal(seen[1], (seen[0].float() + 0.01 * part_of(model).vector).bfloat16())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("where", ["all", "answer"])
def test_there_and_back(family: str, where: str, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(str(pico_path(family)), device="cpu")
    model = steered(loaded.model, family, where=where, layer=1)
    save_model(model, loaded.tokenizer, tmp_path / "steered")
    files = [tmp_path / "steered" / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    assert sum(path.stat().st_size for path in files) < 2000
    again = load_model(str(tmp_path / "steered"), device="cpu").model
    ids = torch.tensor([[5, 8, *HEADER, 33, 34]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
        with part_of(again).switched_off():
            assert torch.equal(again(ids).logits, loaded.model(ids).logits)
    assert weights_fingerprint(again) == weights_fingerprint(model)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with pytest.raises(PosttrainError, match="a steering_vector adapter cannot be merged into its base"):
        load_model(str(tmp_path / "steered"), device="cpu", adapter_merged=True)


def test_what_answers_differently_has_another_fingerprint() -> None:
    base = made("llama")
    models = [
        steered(base, "llama"),
        steered(base, "llama", strength=1.0),
        steered(base, "llama", layer=1),
        steered(base, "llama", where="answer"),
        steered(base, "llama", seed=1),
    ]
    assert len({weights_fingerprint(model) for model in models} | {weights_fingerprint(base)}) == 6
    assert weights_fingerprint(steered(base, "llama")) == weights_fingerprint(models[0])


def test_the_last_token_of_the_last_header() -> None:
    ids = torch.tensor([[6, 9, 5, 6, 9, 7], [1, 6, 6, 9, 9, 6], [6, 6, 6, 1, 9, 6], [0, 0, 0, 0, 6, 9]])
    assert ends_of(ids, [6, 9]).tolist() == [4, 3, -1, 5]
    assert ends_of(ids, [5]).tolist() == [2, -1, -1, -1]
    assert ends_of(ids[:, :1], [6, 9]).tolist() == ends_of(ids, []).tolist() == [-1] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_alone_are_steered(family: str) -> None:
    base = made(family)
    model = steered(base, family, where="answer")
    rows = [[5, 8, 30, *HEADER, 33, 34, 35], [5, *HEADER, 31, 5, 30, *HEADER], [5, 8, 30, 31, 32, 33, 34, 35]]
    with torch.no_grad():
        found = model(torch.tensor(rows)).logits
        plain = base(torch.tensor(rows)).logits
    for row, start, logits in zip(rows, (4, 7, 8), found, strict=True):
        assert (logits - by_hand(base, model, row, start)).abs().max() <= 1e-5
    assert (found[2] - plain[2]).abs().max() <= 1e-6  # no answer begins in it
    with part_of(model).switched_off(), torch.no_grad():
        assert torch.equal(model(torch.tensor(rows)).logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["all", "answer"])
def test_generated_in_batches_as_one_by_one(family: str, where: str) -> None:
    """Shared beginnings, rows of unequal length, and a cache; against plain passes of whole rows, vector by hand."""
    base = made(family)
    model = steered(base, family, where=where)
    draw = torch.Generator().manual_seed(1)
    shared = [5, *torch.randint(10, 300, (80,), generator=draw).tolist()]
    ends = [torch.randint(10, 300, (3 + i,), generator=draw).tolist() for i in range(4)]
    prompts = [[*shared, *end, *HEADER] for end in ends] + [[5, *HEADER], [5, 20, 21, *HEADER]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is said that answers are generated one length at a time
        found = decode(model, prompts, stop=NO_STOP, pad_id=0, max_new_tokens=6)
    clear = 0
    for prompt, decoded in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in decoded.ids:
            top = by_hand(base, model, ids, len(prompt) - 1 if where == "answer" else 0)[-1].topk(2)
            if top.values[0] - top.values[1] < 1e-3:
                break
            assert token == int(top.indices[0])
            clear += 1
            ids.append(token)
    assert clear >= 24


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("where", ["all", "answer"])
def test_scored_with_shared_beginnings_as_one_by_one(family: str, where: str) -> None:
    base = made(family)
    model = steered(base, family, where=where)
    draw = torch.Generator().manual_seed(2)

    def some(count: int) -> list[int]:
        return torch.randint(10, 300, (count,), generator=draw).tolist()

    head = [5, *some(150)]
    contexts = [[*head, *some(4 + i), *HEADER] for i in range(4)]
    pairs = [TokenPair(context, some(1 + j)) for context in contexts for j in range(3)]
    pairs.append(TokenPair([*contexts[0], 40, 5, 41, *HEADER], some(3)))  # goes on where another is answered
    said: list[str] = []
    usage = Usage()
    found = score(model, pairs, usage=usage, say=said.append)
    tables = []
    for context, continuation in pairs:
        logits = by_hand(base, model, [*context, *continuation], len(context) - 1 if where == "answer" else 0)
        tables.append(logits[len(context) - 1 : -1].log_softmax(-1))
    close(found, pairs, tables)
    assert usage.plain_requests == (len(pairs) if where == "answer" else 0)
    assert said == (
        ["scored one by one: its steering vector begins at the last token of each prompt"] if where == "answer" else []
    )
    assert support(model, 200, said.append).kind == ("plain" if where == "answer" else "flat")


def test_what_cannot_be_is_said() -> None:
    base = made("llama")
    settings = {"layer": 7, "module": "model.layers.7", "where": "all", "header": []}
    with pytest.raises(PosttrainError, match=r"LlamaForCausalLM has no layer 'model\.layers\.7'"):
        SteeringVector(base, settings)
    model = steered(base, "llama", where="answer")
    embedded = base.get_input_embeddings()(IDS)
    with pytest.raises(PosttrainError, match="told from token ids, and this forward pass has none"):
        model(inputs_embeds=embedded)
    cache = model(torch.tensor([[5, *HEADER]]), use_cache=True).past_key_values
    with pytest.raises(PosttrainError, match="continues the rows of the forward pass before, and these are others"):
        model(torch.tensor([[5], [6]]), past_key_values=cache)
    with pytest.raises(PosttrainError, match="cannot be merged into its base"):
        merged_added(model)
    with pytest.raises(PosttrainError, match="has an added part already"):
        attach(model, SteeringVector(model, {**settings, "module": "model.layers.1"}))
    config = transformers.MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2, state_size=4)
    mamba: Any = transformers.MambaForCausalLM(config)
    recurrent = {"layer": 0, "module": "backbone.layers.0", "where": "answer", "header": HEADER}
    with pytest.raises(PosttrainError, match="has recurrent layers"):
        SteeringVector(mamba, recurrent)
    assert torch.equal(torch.zeros(32), SteeringVector(mamba, {**recurrent, "where": "all"}).vector)
