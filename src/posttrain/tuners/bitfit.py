"""BitFit: only bias terms move. Ben-Zaken et al. 2021, arXiv:2106.10199.

It trains about a thousandth of the parameters and adds none. Llama and most similar models have no bias terms; on
request, the scales of their norms, the most similar parameters, are trained (as in LLaMA-Adapter v2, arXiv:2304.15010).
"""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedModel

from posttrain.config.base import Config
from posttrain.errors import ConfigError, Problem
from posttrain.registry import register
from posttrain.tuners._parts import float_masters, head_of, is_causal, last_part, norms_of

__all__ = ["BitfitConfig", "bitfit"]

QUERY = ("q_proj", "query", "q_lin", "wq", "q")
"""The names of the query's linear layer in the model families of transformers."""
WIDENING = ("intermediate.dense", "fc1", "lin1", "wi", "up_proj", "gate_proj", "gate_up_proj", "c_fc", "dense_h_to_4h")
"""The names of the MLP's first matrix."""


class BitfitConfig(Config):
    """Train bias terms."""

    kind: Literal["bitfit"] = "bitfit"
    """Bias terms move."""
    biases: Literal["all", "query_mlp"] = "all"
    """Which: all, or those of the queries and of the MLP's first matrix, the half that does nearly all of it in the
    paper (section 3.1)."""
    norms: bool = False
    """The scales of the norms too; on a model without biases these alone."""


@register("tuner", "bitfit", config=BitfitConfig, paper="arXiv:2106.10199")
def bitfit(model: PreTrainedModel, config: BitfitConfig) -> PreTrainedModel:
    """Freeze all but bias terms (and norms if chosen, and a new head), in place; return the same model.

    Raise ConfigError when the model has no such bias terms and norms are not chosen, or lacks those of `query_mlp`.
    """
    biases = [name for name, _ in model.named_parameters() if last_part(name) == "bias"]
    if biases and config.biases == "query_mlp":
        parts = (("queries", QUERY), ("the MLP's first matrix", WIDENING))
        ends = {part: tuple(f".{name}.bias" for name in names) for part, names in parts}
        some = [bias for bias in biases if any(map(bias.endswith, ends.values()))]
        lacking = [part for part, _ in parts if not any(bias.endswith(ends[part]) for bias in some)]
        if lacking:
            cause = f"{type(model).__name__} has no bias terms of its own for {' and '.join(lacking)}"
            raise ConfigError(Problem("tuner.biases", cause, "biases: all"))
        biases = some
    if not biases and not config.norms:
        mend = f"norms: true trains the scales of its {len(norms_of(model))} norms instead"
        raise ConfigError(Problem("tuner", f"{type(model).__name__} has no bias terms for bitfit to move", mend))
    chosen = {*biases, *(norms_of(model) if config.norms else ())}
    if not is_causal(model):
        chosen.update(head_of(model))
    return float_masters(model, chosen)
