"""LoRA: a low-rank update beside each linear layer, the model itself frozen. Hu et al. 2021, arXiv:2106.09685.

    y = W x + s B A x,   A: (r, in) random, B: (out, r) zero, s = alpha / r

rsLoRA (arXiv:2312.03732) scales by alpha / sqrt(r). Built by PEFT; saved as a PEFT adapter folder that names its
base model.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from pydantic import Field
from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.errors import ConfigError, Problem
from posttrain.registry import register

__all__ = ["LoraConfig", "lora"]


class LoraConfig(Config):
    """Train low-rank updates of linear layers."""

    kind: Literal["lora"] = "lora"
    """Low-rank adaptation."""
    rank: int = Field(16, ge=1)
    """Rank r of each update."""
    alpha: float | None = Field(None, gt=0)
    """The update is scaled by alpha / rank; 2 x rank when not given."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of the update."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers to adapt; `all-linear` is every linear layer but the output head."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), so that a higher rank does not learn more slowly."""
    seed: int = 0
    """Seed of the random matrices A."""


@register("tuner", "lora", config=LoraConfig, paper="arXiv:2106.09685")
def lora(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put LoRA layers into the model (in place) and freeze the rest.

    Raises ConfigError when no layer has a name in `target_modules`. The global random state is left as it was.
    """
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha if config.alpha is not None else 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        use_rslora=config.use_rslora,
        task_type=TaskType.CAUSAL_LM,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        # GPT-2's Conv1D stores its matrix transposed; PEFT sets fan_in_fan_out itself and says so
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        # PEFT 0.21 asks transformers 5.23 for an attribute under its former name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        torch.manual_seed(config.seed)
        try:
            return get_peft_model(model, peft_config)
        except ValueError as error:
            names = sorted(
                {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
            )
            raise ConfigError(
                Problem("tuner.target_modules", str(error).split("\n")[0], f"linear layers here: {', '.join(names)}")
            ) from error
