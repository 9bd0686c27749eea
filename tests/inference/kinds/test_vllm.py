"""The vLLM respondent against a stand-in for vLLM's interface (0.33: LLM, SamplingParams, RequestOutput, Logprob) with a
pico model behind it. vLLM itself needs a GPU; nobody has run it here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.data.records import Message
from posttrain.errors import MissingError
from posttrain.inference.decode import decode
from posttrain.inference.kinds.vllm import VllmConfig, VllmRespondent
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Plain, Prompt
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.pico import pico

PROMPTS: list[Prompt] = [
    "hello",
    (Message("user", "a"), Message("assistant", "b"), Message("user", "c")),
    Plain("The "),
]


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None


@dataclass
class LLM:
    """Takes what the real one takes, and refuses texts that leave no room for a token."""

    model: str
    dtype: str
    max_model_len: int | None
    tensor_parallel_size: int
    gpu_memory_utilization: float
    enable_prefix_caching: bool
    llm_engine: Any = field(init=False)

    def __post_init__(self) -> None:
        self.inner = ModelRespondent(load_model(self.model, device="cpu"))
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=self.max_model_len or 512))

    def generate(self, prompts: list[dict[str, list[int]]], settings: Any) -> list[Any]:
        each = settings if isinstance(settings, list) else [settings] * len(prompts)
        return [self._one(p["prompt_token_ids"], s) for p, s in zip(prompts, each, strict=True)]

    def _one(self, ids: list[int], settings: SamplingParams) -> Any:
        assert len(ids) < self.llm_engine.model_config.max_model_len
        stop = self.inner.stop_ids | frozenset(settings.stop_token_ids or [])
        said = decode(
            self.inner.model, [ids], stop=stop, pad_id=0, max_new_tokens=settings.max_tokens, stop_texts=settings.stop or (),
            text_of=lambda ids: self.inner.tokenizer.decode(ids, skip_special_tokens=True),
        )[0]  # fmt: skip
        text = self.inner.tokenizer.decode(said.ids, skip_special_tokens=True)
        for stop_text in settings.stop or ():
            text = text.split(stop_text)[0]
        output = SimpleNamespace(text=text, token_ids=said.ids, finish_reason="stop" if said.ended else "length")
        shown = self._shown(ids) if settings.prompt_logprobs else None
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=shown, outputs=[output])

    def _shown(self, ids: list[int]) -> list[Any]:
        with torch.inference_mode():
            table = torch.log_softmax(self.inner.model(torch.tensor([ids])).logits[0].float(), -1)
        rows: list[Any] = [None]
        for t, token in enumerate(ids[1:]):
            rank = int((table[t] > table[t, token]).sum()) + 1
            rows.append({token: SimpleNamespace(logprob=float(table[t, token]), rank=rank)})
        return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(pico("llama", Path(tmp_path_factory.mktemp("vllm"))))


@pytest.fixture
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__dict__.update(LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.usefixtures("_vllm")
def test_the_same_as_the_model_itself(folder: str) -> None:
    here = ModelRespondent(load_model(folder, device="cpu"))
    there = open_respondent(f"vllm:{folder}")
    assert there.answers(PROMPTS, max_new_tokens=6) == here.answers(PROMPTS, max_new_tokens=6)
    pairs: list[tuple[Prompt, str]] = [
        ("hello", "yes"),
        (Plain("one "), "two"),
        (Plain(""), "begin"),
        (Plain("x" * 600), "y"),
    ]
    ours, theirs = here.logprobs(pairs), there.logprobs(pairs)
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        assert b.sum_nats == pytest.approx(a.sum_nats, abs=1e-4)
        assert (b.tokens, b.greedy) == (a.tokens, a.greedy)
    assert there.usage.truncated == 1
    text = "臺灣最高的山是玉山。"
    assert there.rolling([text])[0].sum_nats == pytest.approx(here.rolling([text])[0].sum_nats, abs=1e-4)
    assert there.next_token_logprobs(["a"], ["b"]) is None
    assert there.fingerprint != here.fingerprint


@pytest.mark.usefixtures("_vllm")
def test_a_long_text_is_read_in_windows(folder: str) -> None:
    there = VllmRespondent(VllmConfig(model=folder, max_length=32))
    scored = there.rolling(["hello " * 40])[0]
    assert scored.tokens == len(there.tokenizer.encode("hello " * 40))


def test_without_vllm_the_mend_is_named(folder: str) -> None:
    with pytest.raises(MissingError, match=r"pip install 'posttrain\[vllm\]'"):
        open_respondent(f"vllm:{folder}")
