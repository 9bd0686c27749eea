"""Return the same model in other arithmetic: how much that changes its answers is the noise floor of every exam.

`bf16` computes everything in bfloat16. `int8` rounds each row of each weight matrix to the 255 steps between minus and
plus its largest value (symmetric, per output channel), as weight-only quantisation does, and computes as before.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain.config.base import spelled

__all__ = ["Arithmetic", "Rounding", "perturbed", "resolve_arithmetic", "round_weights"]

Arithmetic = Annotated[
    Literal["auto", "bf16", "int8"], spelled(Literal["auto", "bf16", "bfloat16", "int8"], bfloat16="bf16")
]


def resolve_arithmetic(model: nn.Module, arithmetic: Arithmetic) -> Literal["bf16", "int8"]:
    """Replace `auto` by bf16, or by int8 for a model in 16 bits, which bf16 would hardly change."""
    if arithmetic != "auto":
        return arithmetic
    return "bf16" if next(model.parameters()).dtype == torch.float32 else "int8"


def perturbed(model: PreTrainedModel, arithmetic: Literal["bf16", "int8"]) -> PreTrainedModel:
    """Return a perturbed copy of the model. The copy takes half of the model's memory (bf16) or as much (int8). Tied
    weights stay tied. `int8` does not round biases, norms and other parameters of one dimension.
    """
    if arithmetic == "bf16":
        memo: dict[int, object] = {}
        for parameter in model.parameters():  # one by one, so that memory holds no second float32 copy
            low = nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=parameter.requires_grad)
            memo[id(parameter)] = low
        made = copy.deepcopy(model, memo)
        return made.to(torch.bfloat16)  # also buffers, which are not parameters
    made = copy.deepcopy(model)
    round_weights(made, "int8")
    return made


Rounding = Literal["int8", "int4", "bfloat16", "float16"]


@torch.no_grad()
def round_weights(model: nn.Module, to: Rounding) -> None:
    """Round the weight matrices of a model in place, and compute in the same dtype as before.

    int8 and int4 round each row to the 255 or 15 steps between minus and plus its largest value (symmetric, per output
    channel), bfloat16 and float16 to their nearest numbers. Biases, norms and other parameters of one dimension stay.
    """
    for parameter in model.parameters():
        if parameter.ndim != 2 or not parameter.is_floating_point():
            continue
        if to in ("int8", "int4"):
            steps = 127 if to == "int8" else 7
            scale = parameter.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / steps
            parameter.copy_((parameter / scale).round() * scale)
        else:
            parameter.copy_(parameter.to(getattr(torch, to)))
