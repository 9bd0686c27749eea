"""LoRA: a low-rank update beside each linear layer, the model itself frozen. Hu et al. 2021, arXiv:2106.09685.

    y = W x + s B A x,   A: (r, in) random, B: (out, r) zero, s = alpha / r

rsLoRA (arXiv:2312.03732) scales by alpha / sqrt(r). DoRA (arXiv:2402.09353) learns the length of each output's weight
vector separately from its direction. PiSSA (arXiv:2404.02948) begins with the r largest singular directions of W and
removes them from W. PEFT builds the update, and it is saved as a PEFT adapter folder that names its base model.
"""

from __future__ import annotations

import re
from typing import Literal

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from pydantic import Field, field_validator, model_validator
from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.errors import ConfigError, Problem
from posttrain.models.adapters import keep_pissa_start
from posttrain.models.layers import layers_of
from posttrain.registry import register
from posttrain.tuners._parts import layer_number, linear_names
from posttrain.tuners._peft import put_in

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
    layers: list[int] | None = None
    """Only layers with these numbers; negative ones count from the output (`[-1, -2]`: the top two). All when left
    out."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), so that a higher rank does not learn more slowly."""
    dora: bool = False
    """Learn the length of each output's weight vector too (DoRA); slower."""
    init: str = "default"
    """How A and B begin: `default` (A random, B zero), `pissa`, or `pissa_niter_4`, which finds the singular directions
    quickly in so many iterations. PiSSA keeps a copy of the base in memory where an objective compares with it."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Other modules that are trained whole and saved with the adapter. New heads are, in any case."""
    seed: int = 0
    """Seed of the random matrices A."""

    @field_validator("init")
    @classmethod
    def _known_init(cls, value: str) -> str:
        if not re.fullmatch(r"default|pissa(_niter_\d+)?", value):
            raise ValueError("one of default, pissa, pissa_niter_4 (any number of iterations)")
        return value

    @model_validator(mode="after")
    def _dora_alone(self) -> LoraConfig:
        if self.dora and self.init != "default":
            raise ValueError("dora begins with init: default; PiSSA's difference from the base is no DoRA update")
        return self


@register("tuner", "lora", config=LoraConfig, paper="arXiv:2106.09685")
def lora(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put LoRA layers into the model (in place), freeze the rest, and return the PEFT model.

    The global random state is left as it was. Raise ConfigError when no layer has a name in `target_modules`, when
    `layers` names a layer that does not exist, or when a layer has fewer singular directions than PiSSA needs.
    """
    targets = config.target_modules if config.layers is None else _within(model, config)
    pissa = config.init != "default"
    if pissa:
        _fit_for_pissa(model, targets, config.rank)
    adapter = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha if config.alpha is not None else 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=targets,
        use_rslora=config.use_rslora,
        use_dora=config.dora,
        init_lora_weights=config.init if pissa else True,
        modules_to_save=list(config.modules_to_save) or None,
    )
    tuned = put_in(model, adapter, seed=config.seed, location="tuner.target_modules")
    if pissa:
        keep_pissa_start(tuned)
    return tuned


def _within(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Return the full names of the target modules in the chosen layers. Raise ConfigError when there are none."""
    wanted = config.layers or []
    count = len(layers_of(model))
    wrong = [n for n in wanted if not -count <= n < count]
    if wrong or not wanted:
        cause = f"there is no layer {', '.join(map(str, wrong))}" if wrong else "no layer is chosen"
        raise ConfigError(Problem("tuner.layers", cause, f"the model has layers 0 to {count - 1}"))
    numbers = {n % count for n in wanted}
    inside = [name for name in _targets(linear_names(model), config.target_modules) if layer_number(name) in numbers]
    if not inside:
        raise ConfigError(Problem("tuner.layers", f"no target module is in layers {sorted(numbers)}"))
    return inside


def _targets(names: list[str], targets: str | list[str]) -> list[str]:
    """Return the layers that PEFT would take: by the end of the name, or by a regular expression of the whole name."""
    if isinstance(targets, str):
        return names if targets == "all-linear" else [name for name in names if re.fullmatch(targets, name)]
    return [name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)]


def _fit_for_pissa(model: PreTrainedModel, targets: str | list[str], rank: int) -> None:
    """Raise ConfigError if PiSSA does not fit a target matrix.

    The matrix has fewer singular directions than `rank`, or it is the matrix of the embeddings. PiSSA writes into the
    matrix, so with a tied output head the embeddings would change."""
    names = linear_names(model)
    if targets != "all-linear":  # the output head and the embeddings count too if they are named
        weights = {name: module._parameters.get("weight") for name, module in model.named_modules()}
        names = _targets([name for name, w in weights.items() if w is not None and w.dim() == 2], targets)
    least = {name: min(model.get_parameter(f"{name}.weight").shape) for name in names}
    small = [name for name, most in least.items() if most < rank]
    if small:
        raise ConfigError(
            Problem("tuner.rank", f"{small[0]} has {least[small[0]]} singular directions, PiSSA wants {rank}")
        )
    embedding = model.get_input_embeddings().weight
    for name in names:
        if model.get_parameter(f"{name}.weight") is embedding:
            cause = f"PiSSA takes directions out of a linear layer's own matrix, and {name} is that of the embeddings"
            raise ConfigError(Problem("tuner.init", cause, "leave it out of target_modules, or use init: default"))
