"""Compute a LoRA layer in bfloat16, forward and backward, with one product and one rounding.

    forward     h = x A^T,  y = [x h] [W sB]^T                    x: (N, in), h: (N, r), y: (N, out)
    backward    [dx' dh] = dy [W sB],  dx = dx' + dh A,  dA = dh^T x,  dB = s dy^T h

PEFT's own layer rounds W x to bfloat16 and then adds the update. An update smaller than half of the last digit of W x
is lost then, and at the beginning of training this is nearly the whole update: under autocast SmolLM2-135M learned
about a third less in its first ten steps than in float32 (docs/notes.md). Here the sum is formed within the product, in
float32, and rounded once, which loses nothing on average. It is also faster: PEFT casts x to float32 for a float32 A,
autocast casts it back, and scale and sum need one pass each over y. A and B stay float32 and get float32 gradients. A
layer with dropout, DoRA, a bias of its own or several adapters is not changed.

Layers that read the same x (query, key and value) are computed as one layer: the W_i and the A_i are stacked, and the
B_i form a block diagonal matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from posttrain.inference.packed import laid_out

__all__ = ["Joined", "Part", "alone", "hooked", "still"]


class Part(NamedTuple):
    """The position of one layer's update in `wide`. first, last: the rows of W; column: the first column of sB, counted
    after the columns of W; scale: the factor of B.
    """

    first: int
    last: int
    column: int
    scale: float


class SlimLora(torch.autograd.Function):
    """A LoRA layer, or several that read the same x, as one product: x (.., in) -> (.., out) in the dtype of `wide`.

    wide (out, in + r): W and room for sB; bias (out,) or None; parts; and for each part a (r_i, in) and b (out_i, r_i).
    The values of `wide` outside of W and of the parts must be zero. The function writes sB into `wide`: several passes
    before one optimiser step write the same values.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, wide: Tensor, bias: Tensor | None, parts: Sequence[Part], *factors: Tensor
    ) -> Tensor:
        low_a = _laid(wide, x.shape[-1], parts, factors)
        rows = _rows(x, low_a)
        ctx.save_for_backward(rows, low_a)
        ctx.wide = wide  # not saved: if a step has several passes, each writes the same values to it
        ctx.parts, ctx.ranks, ctx.shape, ctx.given = parts, [len(a) for a in factors[0::2]], x.shape, x.dtype
        return functional.linear(rows, wide, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, low_a = ctx.saved_tensors
        inside = low_a.shape[1]
        out = gradients[0].reshape(-1, gradients[0].shape[-1]).to(rows.dtype)  # (N, out)
        x = None
        if ctx.needs_input_grad[0]:
            both = out @ ctx.wide  # (N, in + r)
            low = both[:, inside:]
            x = torch.addmm(both[:, :inside], low, low_a).view(ctx.shape).to(ctx.given)
        else:
            low = out @ ctx.wide[:, inside:]
        all_a = low.t() @ rows[:, :inside]  # (r, in)
        found: list[Tensor] = []
        for part, rank in zip(ctx.parts, ctx.ranks, strict=True):
            own = slice(part.column, part.column + rank)
            found.append(all_a[own].float())
            of_b = out[:, part.first : part.last].t() @ rows[:, inside:][:, own]
            found.append(of_b.float().mul_(part.scale))
        return x, None, None, None, *found


def _laid(wide: Tensor, inside: int, parts: Sequence[Part], factors: Sequence[Tensor]) -> Tensor:
    """Write sB of each part into `wide`; return all A, (r, in), in the dtype of `wide`."""
    low_a = wide.new_zeros(wide.shape[1] - inside, inside)
    for part, a, b in zip(parts, factors[0::2], factors[1::2], strict=True):
        low_a[part.column : part.column + len(a)] = a
        at = inside + part.column
        torch.mul(b, part.scale, out=wide[part.first : part.last, at : at + len(a)])
    return low_a


def _rows(x: Tensor, low_a: Tensor) -> Tensor:
    """Return [x h], (N, in + r)."""
    inside = x.shape[-1]
    rows = low_a.new_empty(x.numel() // inside, inside + len(low_a))
    rows[:, :inside].view(x.shape).copy_(x)
    torch.mm(rows[:, :inside], low_a.t(), out=rows[:, inside:])
    return rows


class Kept(NamedTuple):
    """The tensors that do not change within one `still` context. since: the mark of the context; low_a: all A;
    products: the product with rows of `wide`, by the address and the number of these rows.
    """

    since: object
    low_a: Tensor
    products: dict[tuple[int, int], Callable[[Tensor, Tensor | None], Tensor]]


_still: list[object] = []
"""One mark for each active `still` context."""


@contextmanager
def still() -> Iterator[None]:
    """Declare that no A and no B changes during the block. Joined layers then lay them out once, and not in every pass
    without gradient. Laying them out takes most of the time if a few rows are sampled token by token.
    """
    _still.append(object())
    try:
        yield
    finally:
        _still.pop()


def _usual(layer: Any) -> bool:
    """Return whether a plain LoRA layer computes W x + s B A x now: switched on, not merged, with one adapter."""
    return not layer.disable_adapters and not layer.merged and len(layer.active_adapters) == 1


def hooked(layer: Any) -> bool:
    """Return whether the layer or a module within it has hooks."""
    return any(one._forward_hooks or one._forward_pre_hooks or one._backward_hooks for one in layer.modules())


class Joined:
    """Plain LoRA layers that read the same x, computed as one.

    A call of a single layer also uses this computation, until `alone` is called. The base weights of the layers move
    into the tensor that they share with sB, and stay views of it.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        weights = [layer.base_layer.weight for layer in layers]
        inside = weights[0].shape[1]
        ranks = [layer.r[layer.active_adapters[0]] for layer in layers]
        self.wide = weights[0].data.new_zeros(sum(len(w) for w in weights), inside + sum(ranks))
        self._kept: Kept | None = None
        self.parts: list[Part] = []
        row = column = 0
        for layer, weight, rank in zip(layers, weights, ranks, strict=True):
            self.wide[row : row + len(weight), :inside] = weight.data
            weight.data = self.wide[row : row + len(weight), :inside]
            self.parts.append(Part(row, row + len(weight), column, layer.scaling[layer.active_adapters[0]]))
            row, column = row + len(weight), column + rank
        for index, layer in enumerate(layers):
            layer.forward = partial(_forward, self, index)

    def usual(self) -> bool:
        """Return whether the layers can be computed together now: adapters are on, and no single layer has hooks."""
        return all(_usual(layer) and not hooked(layer) for layer in self.layers)

    def __call__(self, x: Tensor, only: int | None = None) -> Tensor:
        """Compute x (.., in) -> (.., sum of out_i). only: index of the one layer to compute; None computes all."""
        layers, parts, wide = self.layers, self._scaled(), self.wide
        if only is not None:
            layers, part = [layers[only]], parts[only]
            wide = wide[part.first : part.last]
            parts = (part._replace(first=0, last=part.last - part.first),)
        biases = [layer.base_layer.bias for layer in layers]
        bias = None
        if any(one is not None for one in biases):
            whole = [
                wide.new_zeros(part.last - part.first) if one is None else one.to(wide.dtype)
                for one, part in zip(biases, parts, strict=True)
            ]
            bias = torch.cat(whole)
        if _still and not torch.is_grad_enabled():
            return self._quick(x, wide, bias)
        made: Tensor = SlimLora.apply(x, wide, bias, parts, *_factors(layers))  # type: ignore[no-untyped-call]
        return made

    def _quick(self, x: Tensor, wide: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the same with factors laid out already. wide: the needed rows of `self.wide`, (out, in + r)."""
        if self._kept is None or self._kept.since is not _still[-1]:
            inside = self.layers[0].base_layer.weight.shape[1]
            self._kept = Kept(_still[-1], _laid(self.wide, inside, self._scaled(), _factors(self.layers)), {})
        where = wide.data_ptr(), len(wide)
        product = self._kept.products.get(where)
        if product is None:
            product = self._kept.products[where] = laid_out(wide)
        return product(_rows(x, self._kept.low_a), bias).view(*x.shape[:-1], -1)

    def _scaled(self) -> tuple[Part, ...]:
        """Return the parts with the present scales."""
        scales = [layer.scaling[layer.active_adapters[0]] for layer in self.layers]
        return tuple(part._replace(scale=scale) for part, scale in zip(self.parts, scales, strict=True))


def _factors(layers: Sequence[Any]) -> list[Tensor]:
    """Return A and B of each layer in turn."""
    return [part[layer.active_adapters[0]].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]


def _forward(group: Joined, index: int, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Replace the forward pass of a layer. Other calls (adapter off, several adapters) use the layer's own."""
    layer = group.layers[index]
    if args or kwargs or not _usual(layer):
        return type(layer).forward(layer, x, *args, **kwargs)
    return group(x, index)


def alone(groups: Sequence[Joined]) -> None:
    """Restore the forward pass of each layer; the weights stay in the shared tensors."""
    for group in groups:
        for layer in group.layers:
            del layer.forward
