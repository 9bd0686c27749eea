"""The cache that rows share, what the head is given, and what trials find out."""

import copy
from typing import Any

import pytest
import torch

from posttrain.inference.attention import PrefixCache, Support, forward
from posttrain.inference.support import alike, support
from posttrain.models.logits import core_of
from tests.inference.test_scoring import made


def test_the_cache_is_a_stack_that_rows_read() -> None:
    model = made("llama")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    last = torch.tensor([5])
    with torch.inference_mode():
        wanted = forward(model, ids, last)
        cache = PrefixCache()
        forward(model, ids[:, :3], torch.tensor([0]), past_key_values=cache)
        cache.length = 3
        forward(model, torch.tensor([[11, 12]]), torch.tensor([0]), past_key_values=cache)
        cache.length = 5
        cache.cut(3)
        cache.grow(False)
        for _ in range(2):  # reading leaves nothing behind
            rows = torch.cat([torch.tensor([[11, 12, 13]]), ids[:, 3:]])
            found = forward(model, rows, last, past_key_values=cache)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        assert cache.get_seq_length() == 3
        assert cache.layers[0].keys.shape[0] == 1


def test_virtual_tokens_before_a_row_are_no_places_of_it() -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    base = made("llama")
    model = get_peft_model(base, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)).eval()
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.inference_mode():
        found = forward(model, ids, torch.tensor([1, 5]))
        wanted = model(input_ids=ids).logits[:, 4:]
    torch.testing.assert_close(found, torch.stack([wanted[0, 1], wanted[1, 2]]), atol=1e-5, rtol=0)
    assert core_of(model) is base


def test_what_the_model_does_after_the_head_is_kept() -> None:
    import transformers

    shape = transformers.Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5,
    )  # fmt: skip
    model: Any = transformers.Gemma2ForCausalLM(shape).eval()
    with torch.inference_mode():
        model.lm_head.weight.mul_(1000)
        found = forward(model, torch.tensor([[5, 6, 7]]), torch.tensor([0, 2]))
        wanted = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, [0, 2]]
    assert float(found.abs().max()) <= 0.5
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_attention_that_looks_ahead_is_found_out() -> None:
    model = made("llama")
    for layer in model.model.layers:
        true = layer.self_attn.forward

        def both_ways(hidden_states: Any, *args: Any, true: Any = true, **kwargs: Any) -> Any:
            out, weights = true(hidden_states, *args, **kwargs)
            return out + hidden_states.mean(1, keepdim=True), weights

        layer.self_attn.forward = both_ways
    said: list[str] = []
    found = support(model, 100, said.append)
    assert (found.kind, found.batched) == ("plain", False)  # padding would be looked at as well
    assert "sharing would be wrong" in said[0]


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_a_reading_may_differ_as_far_as_the_model_differs_from_itself(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained weights make 4e-4 nats of rounding: that is no wrong mask, whatever the fixed bound; a wrong one is."""
    monkeypatch.setattr("posttrain.inference.support.TOLERANCE", 1e-12)
    for family in ("llama", "qwen3", "gpt2"):
        model = made(family)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale if parameter.dim() > 1 else 1.0)
        assert support(model, 100, lambda _: None).kind == "flat"
    wrong = made("mistral-window")
    attention = wrong.model.layers[0].self_attn
    attention.config = copy.deepcopy(attention.config)
    attention.config.sliding_window = 20  # not what its masks have
    assert support(wrong, 200, lambda _: None).kind == "prefix"
    with monkeypatch.context() as patched:
        patched.setattr("posttrain.inference.support.NOISE", 0.0)
        assert support(made("llama"), 100, lambda _: None).kind == "plain"


def test_copies_and_adapters_are_read_as_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of a study are compared with each other: one trial decides for all of them."""
    from peft import LoraConfig, get_peft_model

    tried: list[Any] = []

    def trial(model: Any, *_: Any) -> Support:
        tried.append(model)
        return Support("prefix", reason="told")

    monkeypatch.setattr("posttrain.inference.support._tried", trial)
    first = made("llama")
    twin, other = copy.deepcopy(first), made("qwen3")
    alike(twin, first)
    alike(other, first)  # another kind of model: tried by itself
    assert support(twin, 100, lambda _: None).kind == support(first, 100, lambda _: None).kind == "prefix"
    adapted = get_peft_model(twin, LoraConfig(target_modules=["q_proj"], r=2))
    assert support(adapted, 100, lambda _: None).kind == "prefix"
    assert len(tried) == 1
    support(other, 100, lambda _: None)
    assert len(tried) == 2
    support(copy.deepcopy(first), 100, lambda _: None)  # a stranger
    assert len(tried) == 3
