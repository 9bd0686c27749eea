"""LoRA's layer in bfloat16 with fewer passes over memory, forwards and backwards written out.

    forwards    h = x A^T,  y = x W^T + h (s B)^T                 x: (N, in), h: (N, r), y: (N, out)
    backwards   dh = dy (s B),  dx = dy W + dh A,  dA = dh^T x,  dB = s dy^T h

PEFT's own layer casts x to float32 for a float32 A, autocast casts it back, and scale and sum take a pass each over
y, forwards and backwards: a quarter of a step's time on a CPU. Here scale goes into the small matrix and the sums into
the products. A and B stay float32 and get float32 gradients; products are bfloat16 with float32 sums inside, as under
autocast. A layer with dropout, DoRA, a bias of its own or several adapters is left as it is.
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

__all__ = ["SlimLora", "slim"]


class SlimLora(torch.autograd.Function):
    """x (.., in), weight (out, in), bias (out,) or None, a (r, in), b (out, r), scale -> (.., out) in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (N, in)
        low_a, low_b = a.to(dtype), (b * scale).to(dtype)
        within = rows @ low_a.t()  # (N, r)
        out = functional.linear(rows, weight, bias).addmm_(within, low_b.t())
        ctx.save_for_backward(rows, within, weight, low_a, low_b)
        ctx.scale, ctx.shape, ctx.given = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, within, weight, low_a, low_b = ctx.saved_tensors
        out = gradients[0].reshape(-1, gradients[0].shape[-1]).to(rows.dtype)  # (N, out)
        low = out @ low_b  # (N, r)
        x = None
        if ctx.needs_input_grad[0]:
            x = (out @ weight).addmm_(low, low_a).view(ctx.shape).to(ctx.given)
        a = (low.t() @ rows).float() if ctx.needs_input_grad[3] else None
        b = (out.t() @ within).float().mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return x, None, None, a, b, None, None


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


def _forward(layer: Any, dtype: torch.dtype, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of the layer's own; what is asked otherwise (switched off, several adapters) goes there."""
    if args or kwargs or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        own: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return own
    name = layer.active_adapters[0]
    base = layer.base_layer
    made: Tensor = SlimLora.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], dtype
    )
    return made


@contextlib.contextmanager
def slim(model: nn.Module, dtype: torch.dtype) -> Iterator[int]:
    """The model's plain LoRA layers take the way above for as long as this lasts; gives how many they are. Their base
    weights must be `dtype` already.
    """
    layers = [layer for layer in model.modules() if fits(layer) and layer.base_layer.weight.dtype == dtype]  # type: ignore[union-attr]
    for layer in layers:
        layer.forward = partial(_forward, layer, dtype)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
