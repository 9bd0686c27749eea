"""Scores with shared prefixes against one plain forward pass per request, for every way that a model can take."""

import random
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.inference import attention, scoring
from posttrain.inference.plain import TokenPair
from posttrain.inference.protocol import Scored, Usage
from posttrain.inference.scoring import distributions, score
from posttrain.inference.support import support
from tests.pico import POSITIONS, VOCABULARY, config

TOLERANCE = 1e-4


def spread(model: Any, factor: float) -> Any:
    """Untrained logits are nearly equal: spread them, so that rounding decides nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor) if parameter.dim() > 1 else None
    return model.eval()


def made(family: str) -> Any:
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family == "mistral-window":
        shape = config("mistral")
        shape.sliding_window = 16
    elif family == "bloom":
        shape = transformers.BloomConfig(**small, n_layer=2, n_head=4)
    elif family == "falcon":
        shape = transformers.FalconConfig(**small, num_hidden_layers=2, num_attention_heads=4, alibi=False)
    elif family == "gemma2":
        shape = transformers.Gemma2Config(
            **small, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, sliding_window=70, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
        )  # fmt: skip
    elif family == "gpt_oss":
        shape = transformers.GptOssConfig(
            **small, num_hidden_layers=2, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, sliding_window=20, num_local_experts=2, num_experts_per_tok=2,
        )  # fmt: skip
    elif family == "mamba":
        shape = transformers.MambaConfig(**small, num_hidden_layers=2, state_size=4)
    else:
        shape = config(family.removesuffix("-eager").removesuffix("-lora"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        if family.endswith("-eager"):
            model.set_attn_implementation("eager")
        if family.endswith("-lora"):
            from peft import LoraConfig, get_peft_model

            with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5.23 for an attribute's former name
                warnings.simplefilter("ignore", FutureWarning)
                model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return spread(model, 2.0 if family == "mamba" else 4.0)


def like_mmlu(shots: int = 120, each: int = 10) -> list[TokenPair]:
    """Two subjects with examples in front, questions of four letters and four texts; and what else may come."""
    draw = random.Random(0)

    def some(length: int) -> list[int]:
        return [draw.randrange(8, VOCABULARY) for _ in range(length)]

    pairs = []
    for _ in range(2):
        head = [1, *some(shots)]
        for _ in range(each):
            context = head + some(draw.randint(15, 30))
            pairs += [TokenPair(context, [10 + letter]) for letter in range(4)]
            pairs += [TokenPair(context, some(draw.randint(1, 7))) for _ in range(4)]
    first = pairs[0].context
    pairs.append(TokenPair([5], some(40)))  # nothing in common
    pairs.append(TokenPair([5], []))  # nothing to score
    pairs.append(pairs[7])  # asked twice
    pairs.append(TokenPair(first[:50], first[50:60]))  # lies within another's context
    pairs.append(TokenPair(first[:-1], [*first[-1:], 10]))  # ends where another's continuation is
    return pairs


@torch.no_grad()
def plainly(model: Any, pairs: Sequence[TokenPair]) -> list[Tensor]:
    """Log-probabilities (A, V) of each pair, alone, without cache, mask or padding; equal texts are read once."""

    @cache
    def read(text: tuple[int, ...]) -> Tensor:
        logits: Tensor = model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        return logits.log_softmax(-1)

    tables = [read((*context, *continuation[:-1])) for context, continuation in pairs]
    return [table[len(pair.context) - 1 :][: len(pair.continuation)] for table, pair in zip(tables, pairs, strict=True)]


def close(found: Sequence[Scored], pairs: Sequence[TokenPair], tables: Sequence[Tensor]) -> None:
    for one, pair, table in zip(found, pairs, tables, strict=True):
        ids = torch.tensor(pair.continuation, dtype=torch.long)
        assert one.sum_nats == pytest.approx(float(table.gather(1, ids[:, None]).double().sum()), abs=TOLERANCE)
        assert one.greedy == bool((table.argmax(-1) == ids).all())
        assert one.hits == int((table.argmax(-1) == ids).sum())
        assert one.likeliest == tuple(table.argmax(-1).tolist())
        assert one.tokens == len(pair.continuation)


WAYS = {
    "llama": "flat",
    "qwen3": "flat",
    "glm": "flat",
    "gpt2": "flat",
    "llama-lora": "flat",
    "llama-eager": "flat",
    "gemma3": "flat",  # texts are longer than its window of 16
    "mistral-window": "flat",
    "gemma2": "flat",  # scores with a soft cap, and a window
    "gpt_oss": "flat",  # sinks, and a window
    "falcon": "prefix",
    "bloom": "prefix",
    "mamba": "plain",
}


@pytest.mark.parametrize(("family", "kind"), WAYS.items())
def test_sharing_gives_what_plain_passes_give(family: str, kind: str) -> None:
    model, pairs = made(family), like_mmlu() if kind != "plain" else like_mmlu(each=2)
    usage, said = Usage(), list[str]()
    greedy = plainly(model, [pairs[0]])[0].argmax(-1).tolist()
    pairs.append(TokenPair(pairs[0].context, greedy))  # one that is the likeliest
    order: list[int] = []
    found = score(model, pairs, usage=usage, on_scored=lambda i, one: order.append(i), say=said.append)
    close(found, pairs, plainly(model, pairs))
    assert sum(one.greedy and one.tokens > 0 for one in found) >= 1
    assert sorted(order) == list(range(len(pairs)))
    reading = max(len(p.context) + len(p.continuation) - 1 for p in pairs)
    assert support(model, reading).kind == kind
    rows = {(*p.context, *p.continuation[:-1]) for p in pairs if p.continuation}
    assert usage.least_tokens == len({row[:n] for row in rows for n in range(1, len(row) + 1)})
    assert usage.requests == len(pairs)
    if kind == "plain":
        assert usage.plain_requests == len(pairs) - 1
        assert "recurrent" in usage.plain_reason
        assert said == [f"scored one by one: {usage.plain_reason}"]
        return
    assert (usage.plain_requests, usage.plain_reason) == (0, "")
    assert usage.shared_prefixes >= 20
    assert usage.shared_tokens > 20 * usage.least_tokens
    if kind == "flat":
        assert said == []
        assert usage.scored_tokens == usage.least_tokens
        assert usage.logit_positions <= sum(len(p.continuation) for p in pairs)
    else:
        assert len(said) == 1
        assert "one to a row: a tree mask does not suit it" in said[0]


@cache
def unlimited(family: str) -> tuple[Any, list[TokenPair], list[Scored]]:
    """A model, requests, and what it finds without limits; Mamba reads token by token, and gets few."""
    model, pairs = made(family), like_mmlu(shots=60, each=1 if family == "mamba" else 4)
    return model, pairs, score(model, pairs, usage=Usage(), say=lambda text: None)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mamba"])
@pytest.mark.parametrize(("batch_tokens", "logits"), [(64, 1 << 29), (300, 1 << 29), (16384, 5), (150, 1)])
def test_limits_of_memory_change_no_result(
    family: str, batch_tokens: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs, wanted = unlimited(family)
    widest = []
    true_forward = attention.forward

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = true_forward(*args, **kwargs)
        widest.append(len(made))
        return made

    monkeypatch.setattr(attention, "forward", watched)
    monkeypatch.setattr(scoring, "LOGITS_BYTES", logits * 4 * VOCABULARY)
    usage = Usage()
    found = score(model, pairs, usage=usage, batch_tokens=batch_tokens, say=lambda text: None)
    for one, other in zip(found, wanted, strict=True):
        assert one.sum_nats == pytest.approx(other.sum_nats, abs=TOLERANCE)
        assert one._replace(sum_nats=0) == other._replace(sum_nats=0)
    assert max(widest) <= logits
    assert usage.logit_positions == sum(widest)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mamba"])
def test_distributions_are_those_of_plain_passes(family: str) -> None:
    model, pairs, _ = unlimited(family)
    usage = Usage()
    found = dict(distributions(model, pairs, usage=usage, batch_tokens=500, say=lambda text: None))
    assert sorted(found) == list(range(len(pairs)))
    for i, table in enumerate(plainly(model, pairs)):
        torch.testing.assert_close(found[i], table, atol=TOLERANCE, rtol=0)
    assert usage.requests == len(pairs)
    assert usage.shared_tokens > 0


def test_few_requests_are_read_as_they_are() -> None:
    model = made("mamba")
    pairs = [TokenPair([5, 6, 7], [8, 9]), TokenPair([5, 6, 7], [9]), TokenPair([4], [8])]
    usage = Usage()
    said: list[str] = []
    close(score(model, pairs, usage=usage, say=said.append), pairs, plainly(model, pairs))
    assert said == []
    assert (usage.plain_requests, usage.plain_reason) == (0, "")


def test_only_the_asked_tokens_reach_the_head() -> None:
    model = made("llama")
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda head, args, out: seen.append(tuple(args[0].shape)))
    pairs = like_mmlu(each=30)
    support(model, 200)
    seen.clear()
    usage = Usage()
    score(model, pairs, usage=usage)
    assert sum(shape[1] for shape in seen) == usage.logit_positions
    assert {(shape[0], shape[2]) for shape in seen} == {(1, 32)}
    letters = [pair for pair in pairs if pair.continuation in ([10], [11], [12], [13])]
    usage = Usage()
    score(model, letters, usage=usage)
    assert usage.logit_positions == 60  # one per question, not one per letter


def test_other_kinds_of_attention_are_put_back() -> None:
    model, pairs = made("llama"), like_mmlu(shots=60, each=4)
    wanted = plainly(model, pairs)
    model.set_attn_implementation("flex_attention")
    said: list[str] = []
    for _ in range(2):
        close(score(model, pairs, usage=Usage(), say=said.append), pairs, wanted)
    assert model.config._attn_implementation == "flex_attention"
    assert len(said) == 1
    assert "flex_attention" in said[0]


def test_requests_that_do_not_fit_are_all_named() -> None:
    model = made("gpt2")
    pairs = [TokenPair([], [5]), TokenPair([5], [6]), TokenPair([5] * POSITIONS, [6, 7]), TokenPair([], [])]
    with pytest.raises(PosttrainError) as error:
        score(model, pairs, usage=Usage())
    assert [p.location for p in error.value.problems] == ["request 1", "request 3", "request 4"]
    assert score(model, [TokenPair([5] * POSITIONS, [6])], usage=Usage())[0].tokens == 1


def test_broken_weights_are_an_error() -> None:
    model = made("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(PosttrainError, match="no finite logits"):
        score(model, [TokenPair([5, 6], [7])], usage=Usage())


def test_half_precision_shares_too() -> None:
    model, pairs = made("llama").to(torch.bfloat16), like_mmlu(shots=60, each=4)
    usage = Usage()
    found = score(model, pairs, usage=usage)
    for one, table, pair in zip(found, plainly(model, pairs), pairs, strict=True):
        ids = torch.tensor(pair.continuation, dtype=torch.long)[:, None]
        assert one.sum_nats == pytest.approx(float(table.float().gather(1, ids).sum()), rel=0.1, abs=0.3)
    assert usage.plain_requests == 0
    assert usage.scored_tokens == usage.least_tokens
