"""An adapter merged into its base says what it says beside it: on tied matrices too, whatever the kind of adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PolyConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from peft.tuners.lora import Linear
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.models.load import load_model
from posttrain.models.merge_adapter import merge_peft, relative_distance
from posttrain.models.save import save_model
from tests.training.tiny import load

PicoPath = Callable[[str], Path]
IDS = torch.tensor([[1, 4, 70, 80, 90, 2, 5, 33]])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=2, task_type="CAUSAL_LM", **settings)


CONFIGS: Mapping[str, Callable[[str, str], Any]] = {
    "head": lambda emb, q: lora(target_modules=["lm_head"]),
    "embeddings": lambda emb, q: lora(target_modules=[emb]),
    "both": lambda emb, q: lora(target_modules=[q, emb, "lm_head"]),
    "regex": lambda emb, q: lora(target_modules=rf".*({emb}|lm_head)"),
    "dora": lambda emb, q: lora(target_modules=["lm_head"], use_dora=True),
    "head saved whole": lambda emb, q: lora(target_modules=[q], modules_to_save=["lm_head"]),
    "embeddings saved whole": lambda emb, q: lora(target_modules=[q], modules_to_save=[emb]),
    "both saved whole": lambda emb, q: lora(target_modules=[q], modules_to_save=[emb, "lm_head"]),
    "tokens": lambda emb, q: lora(target_modules=[q], trainable_token_indices=[4, 70, 80]),
    "tokens of each": lambda emb, q: lora(target_modules=[q], trainable_token_indices={emb: [4, 70], "lm_head": [70]}),
    "tokens of the head": lambda emb, q: lora(target_modules=[q], trainable_token_indices={"lm_head": [70, 80]}),
    "tokens alone": lambda emb, q: TrainableTokensConfig(
        target_modules=[emb], token_indices=[4, 70], task_type="CAUSAL_LM"
    ),
    "loha": lambda emb, q: LoHaConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"),
    "ia3": lambda emb, q: IA3Config(target_modules=[q, "lm_head"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "adalora": lambda emb, q: AdaLoraConfig(
        init_r=2, target_modules=[q, "lm_head"], total_step=9, tinit=1, tfinal=1, task_type="CAUSAL_LM"
    ),
}
TIED = {"tokens", "tokens alone"}
"""Those that change both places alike, so that the matrix stays shared."""
CASES = [("llama", name) for name in CONFIGS] + [
    *(("gpt2", name) for name in ("head", "embeddings", "tokens of each")),
    *(("gemma3", name) for name in ("both", "head saved whole")),
    *(("qwen3", name) for name in ("both", "tokens of each")),
]


def moved(pico_path: PicoPath, family: str, config: Any) -> PeftModel:
    """PEFT's own adapter on the family's pico model, which already says something."""
    made = get_peft_model(load(pico_path, family).model, config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    assert isinstance(made, PeftModel)
    return made.eval()


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(("family", "name"), CASES)
def test_merged_says_what_it_says_beside_its_base(pico_path: PicoPath, tmp_path: Path, family: str, name: str) -> None:
    q, embeddings = ("c_attn", "wte") if family == "gpt2" else ("q_proj", "embed_tokens")
    made = moved(pico_path, family, CONFIGS[name](embeddings, q))
    expected = logits(made)
    assert (expected - logits(load(pico_path, family).model)).abs().max() > 0.1
    made.save_pretrained(tmp_path / "adapter")  # as PEFT writes it, with the base's matrices where it thinks so
    beside = load_model(str(tmp_path / "adapter"), device="cpu").model
    torch.testing.assert_close(logits(beside), expected, atol=1e-6, rtol=0)
    merged = load_model(str(tmp_path / "adapter"), device="cpu", adapter_merged=True)
    torch.testing.assert_close(logits(merged.model), expected, atol=3e-5, rtol=0)
    save_model(merged.model, merged.tokenizer, tmp_path / "merged")
    again = load_model(str(tmp_path / "merged"), device="cpu").model
    assert torch.equal(logits(again), logits(merged.model))
    tied = family != "qwen3" and name in TIED
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"] is tied
    shared = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert shared is tied


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_what_peft_cannot_take_out_is_refused(pico_path: PicoPath, tmp_path: Path) -> None:
    config = lora(target_modules=["q_proj", "lm_head"], trainable_token_indices=[4, 70])
    made = moved(pico_path, "llama", config)
    expected = logits(made)
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(str(tmp_path), device="cpu").model), expected)
    with pytest.raises(PosttrainError, match=r"PEFT leaves parts of this LORA adapter in lm_head, .*; use it beside"):
        load_model(str(tmp_path), device="cpu", adapter_merged=True)


def test_another_model_is_refused_whatever_the_reason(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    made = moved(pico_path, "qwen3", lora(target_modules=["q_proj"]))
    own = Linear.merge

    def twice(self: Linear, *args: Any, **named: Any) -> None:
        own(self, *args, **named)
        self.base_layer.weight.data += self.get_delta_weight("default")

    monkeypatch.setattr(Linear, "merge", twice)
    with pytest.raises(PosttrainError, match=r"here: merged into its base it is another model: outputs differ by \d"):
        merge_peft(made, "here")


def test_the_distance() -> None:
    expected = torch.tensor([1.0, -1.0, 1.0, -1.0])  # spread: sqrt(4 / 3)
    assert relative_distance(expected + 0.5, expected) == pytest.approx(0.5 / (4 / 3) ** 0.5)
    assert relative_distance(expected, expected) == 0


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lora(target_modules=["q_proj"], lora_bias=True), "LORA .*: Impossible to merge LoRA with `lora_bias=True`"),
        (PolyConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), "POLY .*: PEFT has no way to do it"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_kinds_that_cannot_be_merged_are_refused(
    pico_path: PicoPath, tmp_path: Path, family: str, config: Any, reason: str
) -> None:
    moved(pico_path, family, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(PosttrainError, match=f"adapter: {reason}.*; use it beside its base"):
        load_model(str(tmp_path / "adapter"), device="cpu", adapter_merged=True)


def test_too_little_memory_is_no_kind_that_cannot_be_merged(
    pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = moved(pico_path, "qwen3", lora(target_modules=["q_proj"]))

    def full(self: Linear, *args: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Linear, "merge", full)
    with pytest.raises(torch.OutOfMemoryError):
        merge_peft(made, "here")
