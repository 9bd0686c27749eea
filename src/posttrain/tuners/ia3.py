"""(IA)3: keys, values and the MLP's inner activations are scaled by learned vectors. Liu et al. 2022, arXiv:2205.05638.

    softmax(Q (l_k * K)^T / sqrt(d)) (l_v * V),      MLP: (l_ff * f(W_1 x)) W_2,     l_* = 1 at the start

PEFT builds the vectors, and they are saved as a PEFT adapter folder. The layers are found by name here, because PEFT's
own table scales the queries of some families (qwen3, gemma3) instead of their keys, and does not know GLM.
"""

from __future__ import annotations

from typing import Literal

from peft import IA3Config as PeftIA3Config
from peft import PeftModel
from pydantic import model_validator
from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.errors import ConfigError, Problem
from posttrain.registry import register
from posttrain.tuners._parts import last_part, linear_names
from posttrain.tuners._peft import put_in

__all__ = ["Ia3Config", "ia3"]

KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin", "wk", "wv", "k", "v")
"""The names of the linear layers of keys and of values in the model families of transformers."""
JOINED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj")
"""The names of a single matrix for queries, keys and values. Its whole output is scaled, so the queries are scaled too
(as PEFT does)."""
NARROWING = (
    "down_proj", "mlp.c_proj", "fc2", "lin2", "dense_4h_to_h", "fc_out", "wo", "w2", "mlp.dense_2",
)  # fmt: skip
"""The names of the MLP's second matrix; its input is scaled."""


class Ia3Config(Config):
    """Train vectors that scale keys, values and inner activations."""

    kind: Literal["ia3"] = "ia3"
    """(IA)3."""
    target_modules: list[str] | None = None
    """Layers whose output is scaled, and those of `feedforward_modules`; keys, values and the MLP's second matrix when
    left out."""
    feedforward_modules: list[str] | None = None
    """Those of `target_modules` whose input is scaled instead."""
    seed: int = 0
    """Not used by the vectors, which start at 1; of a new head's copy."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Ia3Config:
        if (self.target_modules is None) != (self.feedforward_modules is None):
            raise ValueError("give target_modules and feedforward_modules together, or neither")
        if set(self.feedforward_modules or ()) - set(self.target_modules or ()):
            raise ValueError("feedforward_modules must be among target_modules")
        return self


@register("tuner", "ia3", config=Ia3Config, paper="arXiv:2205.05638")
def ia3(model: PreTrainedModel, config: Ia3Config) -> PeftModel:
    """Put the vectors into the model (in place), freeze the rest, and return the PEFT model.

    Raise ConfigError when no layer fits.
    """
    if config.target_modules is None:
        names = linear_names(model)
        narrowing = [name for name in names if _is(name, NARROWING) or _closes_bert_mlp(name)]
        attention = [name for name in names if _is(name, KEYS_AND_VALUES)] or [n for n in names if _is(n, JOINED)]
        if not narrowing or not attention:
            there = ", ".join(sorted({last_part(name) for name in names}))
            what = "keys and values" if not attention else "the MLP's second matrix"
            mend = f"name layers in target_modules and feedforward_modules; linear layers here: {there}"
            raise ConfigError(Problem("tuner", f"{what} are not found in {type(model).__name__}", mend))
        targets, feedforward = [*attention, *narrowing], narrowing
    else:
        targets, feedforward = config.target_modules, config.feedforward_modules or []
    adapter = PeftIA3Config(target_modules=targets, feedforward_modules=feedforward)
    return put_in(model, adapter, seed=config.seed, location="tuner.target_modules")


def _is(name: str, endings: tuple[str, ...]) -> bool:
    return f".{name}".endswith(tuple(f".{ending}" for ending in endings))


def _closes_bert_mlp(name: str) -> bool:
    """Return whether a name is BERT's `layer.0.output.dense`, but not its `layer.0.attention.output.dense`."""
    return name.endswith(".output.dense") and not name.endswith(".attention.output.dense")
