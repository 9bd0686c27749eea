"""LoRA's layer in bfloat16, forwards and backwards written out: one product, one rounding.

    forwards    h = x A^T,  y = [x h] [W sB]^T                    x: (N, in), h: (N, r), y: (N, out)
    backwards   [dx' dh] = dy [W sB],  dx = dx' + dh A,  dA = dh^T x,  dB = s dy^T h

PEFT's own layer rounds W x to bfloat16 and then adds the update. What is smaller than half of the last place of W x is
gone then, and at the beginning that is nearly all of it: under autocast SmolLM2-135M learned about a third less in
its first ten steps than in float32 (docs/notes.md). Here the sum is formed within the product, in float32, and rounded
once, which loses nothing on average. It is faster, too: PEFT casts x to float32 for a float32 A, autocast casts it
back, and scale and sum take a pass each over y. A and B stay float32 and get float32 gradients. A layer with dropout,
DoRA, a bias of its own or several adapters is left as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["fits", "lora_layer", "slim"]


class SlimLora(torch.autograd.Function):
    """x (.., in), wide (out, in + r): W and room for sB, bias (out,) or None, a (r, in), b (out, r), scale -> (.., out)
    in the dtype of `wide`. `wide` is written to: several passes before one step write the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, wide: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        inside = x.shape[-1]
        low_a = a.to(wide.dtype)
        wide[:, inside:] = b * scale
        rows = wide.new_empty(x.numel() // inside, wide.shape[1])  # (N, in + r)
        rows[:, :inside] = x.reshape(-1, inside)
        rows[:, inside:] = rows[:, :inside] @ low_a.t()
        ctx.save_for_backward(rows, low_a)
        ctx.wide = wide  # not saved: it is written to again, with the same values, where a step has several passes
        ctx.scale, ctx.shape, ctx.given = scale, x.shape, x.dtype
        return functional.linear(rows, wide, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, low_a = ctx.saved_tensors
        inside = low_a.shape[1]
        out = gradients[0].reshape(-1, gradients[0].shape[-1]).to(rows.dtype)  # (N, out)
        x = a = None
        if ctx.needs_input_grad[0]:
            both = out @ ctx.wide  # (N, in + r)
            low = both[:, inside:]
            x = torch.addmm(both[:, :inside], low, low_a).view(ctx.shape).to(ctx.given)
        else:
            low = out @ ctx.wide[:, inside:]
        if ctx.needs_input_grad[3]:
            a = (low.t() @ rows[:, :inside]).float()
        b = (out.t() @ rows[:, inside:]).float().mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return x, None, None, a, b, None


def lora_layer(x: Tensor, wide: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """As `SlimLora` says."""
    made: Tensor = SlimLora.apply(x, wide, bias, a, b, scale)  # type: ignore[no-untyped-call]
    return made


def fits(layer: nn.Module) -> bool:
    """Whether a module is a LoRA layer of the plain kind, on a plain linear layer."""
    if not isinstance(layer, Linear) or len(layer.active_adapters) != 1 or layer.merged:
        return False
    name = layer.active_adapters[0]
    return (
        name in layer.lora_A
        and type(layer.base_layer) is nn.Linear
        and not layer.base_layer.weight.requires_grad
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def _forward(layer: Any, wide: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of the layer's own; what is asked otherwise (switched off, several adapters) goes there."""
    if args or kwargs or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        own: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return own
    name = layer.active_adapters[0]
    base = layer.base_layer
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    bias = None if base.bias is None else base.bias.to(wide.dtype)
    return lora_layer(x, wide, bias, a, b, layer.scaling[name])


@contextlib.contextmanager
def slim(model: nn.Module, dtype: torch.dtype) -> Iterator[int]:
    """The model's plain LoRA layers take the way above for as long as this lasts; gives how many they are. Their base
    weights must be `dtype` already; they move into the room that they share with sB.
    """
    plain: list[Any] = [module for module in model.modules() if fits(module)]
    layers = [layer for layer in plain if layer.base_layer.weight.dtype == dtype]
    with torch.no_grad():
        for layer in layers:
            weight, rank = layer.base_layer.weight, layer.r[layer.active_adapters[0]]
            wide = torch.cat([weight.data, weight.new_zeros(len(weight), rank)], 1)  # (out, in + r)
            weight.data = wide[:, : weight.shape[1]]
            layer.forward = partial(_forward, layer, wide)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
