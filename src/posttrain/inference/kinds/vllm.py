"""A model in vLLM, for large sets on a GPU: vLLM's batching and prefix cache, with the same prompts as elsewhere.

vLLM's kernels differ from those of transformers in the last bits, so their results are not mixed: the fingerprint says
which of the two was used. Log-probabilities of given texts come from `prompt_logprobs`. Needs the extra `vllm`, and a
GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from posttrain.config.base import Config
from posttrain.data.control import gate_of
from posttrain.errors import MissingError, Problem
from posttrain.inference.encoding import TokenRespondent
from posttrain.inference.locations import each
from posttrain.inference.plain import TokenPair
from posttrain.inference.protocol import Answer, Generation, Plain, Prompt, Scored, Told, Usage
from posttrain.inference.texts import spoken
from posttrain.models.fingerprint import template_fingerprint
from posttrain.registry import register

__all__ = ["VllmConfig", "VllmRespondent"]


class VllmConfig(Config):
    """A model in vLLM."""

    kind: Literal["vllm"] = "vllm"
    """A model in vLLM."""
    model: str = Field(min_length=1)
    """A local folder, or a hub id when downloads are allowed."""
    system_prefix: str | None = None
    """A system message put before every prompt."""
    dtype: str = "auto"
    """As vLLM has it: auto, bfloat16, float16, float32."""
    max_length: int | None = Field(default=None, gt=0)
    """Tokens of prompt and answer, at most; the model's own when left out."""
    gpus: int = Field(default=1, ge=1)
    """GPUs that share the weights (tensor parallelism)."""
    memory_share: float = Field(default=0.9, gt=0, le=1)
    """The share of each GPU's memory that vLLM may take."""


@register("respondent", "vllm", config=VllmConfig)
class VllmRespondent(TokenRespondent):
    """Answers of a model in vLLM."""

    def __init__(self, config: VllmConfig) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            cause = "this respondent needs the package vllm"
            raise MissingError(Problem("", cause, "pip install 'posttrain[vllm]'")) from error
        from posttrain.models.load import load_tokenizer

        self.config = config
        self.name = f"vllm:{config.model}"
        self.usage = Usage()
        self.tokenizer = load_tokenizer(config.model)
        self.system_prefix = config.system_prefix
        self.engine: Any = LLM(
            model=config.model,
            dtype=config.dtype,
            max_model_len=config.max_length,
            tensor_parallel_size=config.gpus,
            gpu_memory_utilization=config.memory_share,
            enable_prefix_caching=True,
        )

    @cached_property
    def fingerprint(self) -> str:
        """The model's name, the template and the system message."""
        return f"vllm:{self.config.model}:{template_fingerprint(self.tokenizer)}:{self.config.system_prefix or ''}"

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        from vllm import SamplingParams

        end = self.end_of_turn
        settings = [
            SamplingParams(
                max_tokens=how.max_new_tokens,
                temperature=how.temperature,
                seed=how.seed + i if how.temperature > 0 else None,
                stop=list(how.stop) or None,
                stop_token_ids=[end] if end is not None else None,
            )
            for i in range(len(prompts))
        ]
        asked = [{"prompt_token_ids": ids} for ids in each("prompt", prompts, self.encode)]
        answers = []
        for i, (prompt, output) in enumerate(zip(prompts, self.engine.generate(asked, settings), strict=True)):
            said = output.outputs[0]
            text = gate_of(self.tokenizer).without(said.text, self.tokenizer)
            text = text if isinstance(prompt, Plain) else spoken(text)
            answers.append(Answer(text, len(said.token_ids), said.finish_reason != "length"))
            self.usage.requests += 1
            self.usage.prompt_tokens += len(output.prompt_token_ids)
            self.usage.generated_tokens += len(said.token_ids)
            how.on_answer(i, answers[-1])
        return answers

    @property
    def longest(self) -> int:
        """The model's length minus 2: vLLM also reads the last scored token, and needs room for a generated one."""
        return int(self.engine.llm_engine.model_config.max_model_len) - 2

    def _score(self, coded: Sequence[TokenPair], on_scored: Told) -> list[Scored]:
        from vllm import SamplingParams

        settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        asked = [{"prompt_token_ids": [*pair.context, *pair.continuation]} for pair in coded]
        scored = []
        for i, (pair, output) in enumerate(zip(coded, self.engine.generate(asked, settings), strict=True)):
            shown = output.prompt_logprobs[len(pair.context) :]  # a mapping of token to log-probability per position
            own = [entry[token] for entry, token in zip(shown, pair.continuation, strict=True)]
            best = tuple(next((token for token, one in entry.items() if one.rank == 1), -1) for entry in shown)
            hits = sum(entry.rank == 1 for entry in own)
            scored.append(Scored(sum(entry.logprob for entry in own), len(own), hits, best))
            self.usage.requests += 1
            self.usage.scored_tokens += len(pair.context) + len(pair.continuation)
            on_scored(i, scored[-1])
        return scored
