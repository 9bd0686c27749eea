"""Prompt tuning: learned vectors in front of every row, as if they were words. Lester et al. 2021, arXiv:2104.08691.

    model([e_1 ... e_P; E(x_1) ... E(x_T)]),   only e_1 ... e_P: (P, H) move

PEFT builds the vectors, and they are saved as a PEFT adapter folder. They take P of the model's positions. They begin
as embeddings of words, which the paper found better than random vectors (section 3.2), especially for small models.
`posttrain model show ADAPTER --nearest 5` shows the words that are nearest to the learned vectors.
"""

from __future__ import annotations

from typing import Literal

import torch
from peft import PeftModel, PromptTuningConfig
from pydantic import model_validator
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.models.load import load_tokenizer
from posttrain.registry import register
from posttrain.tuners._peft import put_in, refuse_looking_back
from posttrain.tuners._virtual import VirtualTokens

__all__ = ["PromptConfig", "first_vectors", "prompt_tuning"]


class PromptConfig(VirtualTokens):
    """Train vectors in front of every row."""

    kind: Literal["prompt_tuning"] = "prompt_tuning"
    """Prompt tuning."""
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """How they begin: embeddings of words drawn by the seed, of `init_text`, or random with the embeddings' spread."""
    init_text: str | None = None
    """The text to begin with; cut, or repeated, to `tokens` tokens. Needs `init: text`."""

    @model_validator(mode="after")
    def _text_for_text(self) -> PromptConfig:
        if (self.init == "text") != bool(self.init_text):
            raise ValueError("init: text and init_text belong together")
        return self


@register("tuner", "prompt_tuning", config=PromptConfig, paper="arXiv:2104.08691")
def prompt_tuning(model: PreTrainedModel, config: PromptConfig) -> PeftModel:
    """Freeze the model and put virtual tokens before its input; return the PEFT model. The weights are not changed."""
    refuse_looking_back(model, "prompt_tuning")
    start = first_vectors(model, config)
    tuned = put_in(model, PromptTuningConfig(num_virtual_tokens=config.tokens), seed=config.seed)
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.copy_(start)
    return tuned


def first_vectors(model: PreTrainedModel, config: PromptConfig) -> Tensor:
    """Return the initial virtual tokens, (P, H), float32, scaled like the model's embeddings (Gemma's times sqrt(H)).
    Raise ConfigError when `init_text` has no tokens.
    """
    embeddings = model.get_input_embeddings()
    draw = torch.Generator().manual_seed(config.seed)
    count = int(embeddings.weight.shape[0])
    if config.init == "random":
        some = _read(model, torch.randint(count, (1024,), generator=draw))
        return torch.randn(config.tokens, some.shape[1], generator=draw).to(some.device) * some.std()
    if config.init == "vocabulary":
        return _read(model, torch.randint(count, (config.tokens,), generator=draw))
    tokenizer = load_tokenizer(model.name_or_path)
    ids = tokenizer.encode(str(config.init_text), add_special_tokens=False)
    if not ids:
        raise ConfigError(Problem("tuner.init_text", "has no tokens", "give some words"))
    repeated = ids * -(-config.tokens // len(ids))
    return _read(model, torch.tensor(repeated[: config.tokens]))


@torch.no_grad()
def _read(model: PreTrainedModel, ids: Tensor) -> Tensor:
    embedded: Tensor = model.get_input_embeddings()(ids.to(model.device))
    return embedded.float()
