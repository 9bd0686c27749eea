"""Lay out weights in the processor's best order for multiplication, while a model is only read.

torch gives float32 products to MKL, which is slow on a processor that is not Intel's. It gives bfloat16 products to
oneDNN, which lays the weight out again at every call: half of the time or more if few rows meet a weight, as in
decoding. Within `packed` oneDNN gets both, with weights laid out once (a layer of 576 x 1536, 16 rows, 2 cores of an
AMD EPYC, GFLOP/s: float32 64 -> 137, bfloat16 143 -> 240; docs/notes.md). An Intel processor with AMX gained nothing.
Only the processor decides, so a machine always rounds in one way.

A plain LoRA layer in float32 is packed as one product, W + sBA; the model's own weights do not change. In bfloat16 the
update would be rounded away, so it stays separate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakSet

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional

from posttrain.models.adapters import plain_lora
from posttrain.models.memory import set_aside, trim
from posttrain.models.processor import processor

__all__ = ["BYTES", "LEAST", "head_laid_out", "laid_out", "packed", "pays"]

LEAST = 20_000_000
"""Number of parameters in linear layers from which the copy is worth its time."""
BYTES = 2 << 30
"""Size in bytes above which weights are not copied."""
ROWS = 16
"""Number of rows that the layout is chosen for. Products of any number of rows are right."""


@cache
def pays() -> bool:
    """Return whether this processor multiplies faster in this way, and this torch can do it."""
    found = torch._C._has_mkldnn and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    return found and processor().name.startswith("AMD")


def laid_out(weight: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a function (x (.., in), bias (out,) or None) -> (.., out) for a weight that does not change. The weight is
    laid out if that is faster.
    """
    if not (pays() and _packable(weight)):
        return lambda x, bias: functional.linear(x, weight, bias)
    laid = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)

    def product(x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, laid, bias, "none", [], "")

    return product


@contextmanager
def head_laid_out(head: nn.Module | None, low: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this block, an output head multiplies `low` of its weight, in that precision, if no gradient is needed.

    Without this, autocast would convert the weight for every token. A head that is not a plain linear layer is not
    changed.
    """
    if type(head) is not nn.Linear or "forward" in vars(head):
        yield
        return
    weight = low(head.weight.detach())
    own: Tensor | None = head.bias
    bias = None if own is None else own.detach().to(weight.dtype)
    product = laid_out(weight)
    vars(head)["forward"] = lambda x: product(x.to(weight.dtype), bias)
    try:
        yield
    finally:
        del vars(head)["forward"]


_now: WeakSet[nn.Module] = WeakSet()


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Within this block, the linear layers of a model on a CPU multiply packed weights if no gradient is needed.

    Weights must not change. The weights take their memory twice, unless they are in a file and are freed (`set_aside`).
    Nothing happens for small and for very large models, within another `packed` of the same model, and where it is not
    faster.
    """
    if model in _now:
        yield
        trim()  # caches of keys and values fragment the heap
        return
    layers = _layers(model) if pays() else []
    count = sum(weight.numel() for _, weight in layers)
    if count < LEAST or sum(weight.numel() * weight.element_size() for _, weight in layers) > BYTES:
        yield
        return
    _now.add(model)
    try:
        for layer, weight in layers:
            layer.forward = _packed_forward(layer, weight)
        set_aside(model.parameters())
        yield
    finally:
        for layer, _ in layers:
            vars(layer).pop("forward", None)
        _now.discard(model)
        trim()


def _layers(model: nn.Module) -> list[tuple[Any, Tensor]]:
    """Return the layers that can be packed, each with its weight."""
    found: list[tuple[Any, Tensor]] = []
    within: set[nn.Module] = set()
    for module in model.modules():
        if module in within:
            continue
        if "forward" in vars(module) and isinstance(
            module, (nn.Linear, Linear)
        ):  # replaced by other code, for training
            within.update(module.modules())
        elif plain_lora(module) and _packable(module.base_layer.weight):  # type: ignore[union-attr, arg-type]
            weight: Tensor = module.base_layer.weight  # type: ignore[union-attr, assignment]
            if weight.dtype == torch.float32:
                within.update(module.modules())
                found.append((module, weight))
        elif type(module) is nn.Linear and _packable(module.weight):
            found.append((module, module.weight))
    return found


def _packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16) and weight.dim() == 2


def _packed_forward(layer: Any, weight: Tensor) -> Callable[..., Tensor]:
    bias = layer.bias if type(layer) is nn.Linear else layer.base_layer.bias
    with torch.no_grad():
        whole = weight.detach()
        if type(layer) is not nn.Linear:
            whole = whole + layer.get_delta_weight(layer.active_adapters[0])
        product = laid_out(whole)
    return partial(_forward, layer, product, weight.dtype, None if bias is None else bias.detach())


def _forward(
    layer: Any,
    product: Callable[[Tensor, Tensor | None], Tensor],
    dtype: torch.dtype,
    bias: Tensor | None,
    x: Tensor,
    *more: Any,
    **named: Any,
) -> Tensor:
    """Return (.., out) for x (.., in). In every unusual case, call the layer's own forward pass instead."""
    off = type(layer) is not nn.Linear and (layer.disable_adapters or layer.merged)
    if more or named or off or torch.is_grad_enabled() or x.dtype != dtype or not x.numel():
        return type(layer).forward(layer, x, *more, **named)
    return product(x, bias)
