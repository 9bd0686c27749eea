"""Compute norms, gated MLPs and attention of a LoRA model in bfloat16 with fewer passes over memory.

    norm        y = w x / sqrt(mean(x^2) + eps)                  x and one statistic per token are kept
    gated MLP   y = down(silu(g) u),  [g u] = one product        silu is computed again in the backward pass
    attention   q, k, v = one product, rotated by cos and sin in float32, rounded once

Both the forward and the backward pass are written out. The modules of these kinds are found by a trial, not from a list
of architectures: the model reads a few tokens in float32. A module is taken over if its output equals the written-out
computation to 1e-5 and, for attention, if it needs nothing but a scale. All other modules keep their own forward pass,
and so do calls with caches or masks, with adapters that are switched off, or to modules that have hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional

from posttrain.models.adapters import plain_lora
from posttrain.models.logits import core_of
from posttrain.training.short_attention import attend, watched
from posttrain.training.slim_lora import Joined, hooked

__all__ = ["Kinds", "gated", "kinds_of", "normed", "slim_blocks", "turned"]

TOLERANCE = 1e-5
"""Maximum difference of outputs in a trial, in float32, as a share of their largest value."""
TRIED_TOKENS = 6
"""Number of tokens that the model reads in a trial, in two rows."""


class Kinds(NamedTuple):
    """The modules of a model that are norms, gated MLPs or attention of the kinds above."""

    norms: list[Any]
    gates: list[Any]
    attentions: list[Any]

    def within(self, layers: Container[int]) -> Kinds:
        """Return the kinds without the blocks that contain a LoRA layer with an `id` that is not in `layers`."""

        def whole(module: nn.Module) -> bool:
            return all(id(child) in layers for child in module.children() if isinstance(child, Linear))

        return Kinds(self.norms, [m for m in self.gates if whole(m)], [m for m in self.attentions if whole(m)])


# ---- what is computed ------------------------------------------------------------------------------------------------


class Norm(torch.autograd.Function):
    """A norm: x (.., D) in float32, w (D,), eps -> (.., D); with gradients for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (.., 1)
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        out = gradients[0] * weight
        along = (out * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
        return out.mul_(inverse).addcmul_(x, along), None, None


class Gated(torch.autograd.Function):
    """The activation of a gated MLP: [g u] (.., 2 n) -> silu(g) u (.., n)."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        given = torch.empty_like(both)
        of_gate, of_up = given.chunk(2, -1)
        torch.mul(gradients[0], functional.silu(gate), out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up, gate, grad_input=of_gate)
        return given


class Turned(torch.autograd.Function):
    """Split [q k v] into heads and rotate q and k, in the layout that attention needs.

    [q k v] (B, T, (heads + 2 kinds) d), cos and sin (B or 1, T, d) -> q (B, heads, T, d), k and v (B, kinds, T, d). The
    rotation is x cos + [-x2 x1] sin, where [x1 x2] are the halves of a head; kinds is the number of key heads.
    """

    @staticmethod
    def forward(ctx: Any, joined: Tensor, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = joined.shape
        states = joined.view(batch, length, -1, cos.shape[-1])  # (B, T, heads + 2 kinds, d)
        kinds = (states.shape[2] - heads) // 2
        cos, sin = cos[:, :, None], sin[:, :, None]
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        moved = _turn(states[:, :, : heads + kinds], cos, sin)
        parts = moved[:, :, :heads], moved[:, :, heads:], states[:, :, heads + kinds :]
        q, k, v = (_heads_first(part, joined.dtype) for part in parts)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        back = -sin.roll(sin.shape[-1] // 2, -1)  # the transpose of a rotation: x cos + [(x sin)2 -(x sin)1]
        q, k, v = gradients
        batch, heads, length, width = q.shape
        kinds = k.shape[1]
        given = q.new_empty(batch, length, heads + 2 * kinds, width)
        for part, first in ((q, 0), (k, heads)):
            given[:, :, first : first + part.shape[1]] = _turn(part.transpose(1, 2), cos, back)
        given[:, :, heads + kinds :] = v.transpose(1, 2)
        return given.view(batch, length, -1), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate: x (B, T, n, d) -> x cos + [-x2 x1] sin, in the precision of x or of cos, whichever is higher."""
    fine = x.to(torch.promote_types(x.dtype, cos.dtype))
    half = fine.shape[-1] // 2
    made = fine * cos
    made[..., :half].addcmul_(fine[..., half:], sin[..., :half], value=-1)
    made[..., half:].addcmul_(fine[..., :half], sin[..., half:])
    return made


def _heads_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x (B, T, n, d) as (B, n, T, d), contiguous."""
    made = torch.empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=dtype)
    return made.copy_(x.transpose(1, 2))


normed: Callable[[Tensor, Tensor, float], Tensor] = Norm.apply
gated: Callable[[Tensor], Tensor] = Gated.apply
turned: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]] = Turned.apply


# ---- which modules are of these kinds --------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One recorded call of a module in a trial."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@torch.no_grad()
def kinds_of(model: nn.Module) -> Kinds:
    """Find the modules of these kinds by a trial in float32, for a model on a CPU with `sdpa` attention. Random states
    and training modes are restored afterwards.
    """
    core = core_of(model)
    norms = [m for m in core.modules() if _like_norm(m)]
    gates = [m for m in core.modules() if _has(m, "gate_proj", "up_proj", "down_proj", "act_fn")]
    attentions = [m for m in core.modules() if _has(m, "q_proj", "k_proj", "v_proj", "o_proj") and _sized(m)]
    if core.config.get_text_config()._attn_implementation != "sdpa" or not gates + attentions:
        return Kinds([], [], [])
    ids = torch.arange(1, TRIED_TOKENS + 1).view(2, -1) % core.get_input_embeddings().weight.shape[0]
    seen: dict[Any, list[Seen]] = {module: [] for module in (*norms, *gates, *attentions)}

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen[module].append(Seen(args, kwargs, output))

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for module in core.modules():
            stack.callback(setattr, module, "training", module.training)
        core.train()  # so that dropout has an effect
        asked = stack.enter_context(watched(core))
        for module in seen:
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        core(input_ids=ids, use_cache=False)
    once = {module: calls[0] for module, calls in seen.items() if len(calls) == 1}
    return Kinds(
        [m for m in norms if m in once and _is_norm(m, once[m])],
        [m for m in gates if m in once and _is_gated(m, once[m])],
        [m for m in attentions if m in once and m in asked and _is_attention(m, once[m], asked[m])],
    )


def _has(module: nn.Module, *names: str) -> bool:
    """Return whether a module contains plain LoRA layers (and an activation) of these names, and no other modules."""
    children = dict(module.named_children())
    return set(children) == set(names) and all(
        name == "act_fn" or (plain_lora(child) and not hooked(child)) for name, child in children.items()
    )


def _sized(module: Any) -> bool:
    """Return whether the numbers of heads and of key heads follow from the sizes of an attention module's layers."""
    width = getattr(module, "head_dim", 0)
    sizes = [len(layer.base_layer.weight) for layer in (module.q_proj, module.k_proj, module.v_proj)]
    return bool(width) and all(size % width == 0 for size in sizes) and sizes[1] == sizes[2]


def _like_norm(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and module.get_parameter("weight").dim() == 1 and _epsilon(module) is not None


def _epsilon(module: Any) -> float | None:
    for name in ("variance_epsilon", "eps"):
        if isinstance(found := getattr(module, name, None), float):
            return found
    return None


def _same(one: Any, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return float((one - other).abs().max()) <= TOLERANCE * max(float(one.abs().max()), 1e-6)


def _only_x(call: Seen) -> Tensor | None:
    """Return the input of a module if it is one float32 tensor, else None."""
    x = call.args[0] if len(call.args) == 1 and not call.kwargs else None
    return x if isinstance(x, Tensor) and x.dtype == torch.float32 else None


def _is_norm(module: Any, call: Seen) -> bool:
    x = _only_x(call)
    return x is not None and _same(call.output, normed(x, module.weight, _epsilon(module) or 0.0))


def _is_gated(module: Any, call: Seen) -> bool:
    x = _only_x(call)
    if x is None:
        return False
    both = torch.cat([module.gate_proj(x), module.up_proj(x)], -1)
    return _same(call.output, module.down_proj(gated(both)))


def _is_attention(module: Any, call: Seen, asked: tuple[Tensor, Tensor, Tensor, bool]) -> bool:
    """Compare attention with the computation above. asked: query, key and value as the attention function received
    them, and whether the call needed only a scale."""
    x: Any = call.kwargs.get("hidden_states")
    positions: Any = call.kwargs.get("position_embeddings")
    if call.args or not _plain_call(x, positions, call.kwargs) or not asked[3] or x.dtype != torch.float32:
        return False
    layers = (module.q_proj, module.k_proj, module.v_proj)
    heads = len(module.q_proj.base_layer.weight) // module.head_dim
    if positions[0].shape[-1] != module.head_dim:
        return False
    q, k, v = turned(torch.cat([layer(x) for layer in layers], -1), positions[0], positions[1], heads)
    if not all(_same(one, other) for one, other in zip(asked[:3], (q, k, v), strict=True)):
        return False
    out, _ = attend(module, q, k, v, None, scaling=module.scaling)
    return (
        isinstance(call.output, tuple)
        and len(call.output) == 2
        and call.output[1] is None
        and _same(call.output[0], module.o_proj(out.reshape(*x.shape[:-1], -1)))
    )


def _plain_call(x: Any, positions: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a call is attention over whole rows, with no mask and no cache."""
    return (
        isinstance(x, Tensor)
        and x.dim() == 3
        and isinstance(positions, tuple)
        and len(positions) == 2
        and all(isinstance(one, Tensor) and one.dim() == 3 and one.shape[1] == x.shape[1] for one in positions)
        and all(kwargs.get(name) is None for name in ("attention_mask", "past_key_values"))
        and not kwargs.get("output_attentions")
    )


# ---- in place of the modules' own ------------------------------------------------------------------------------------


def _low(dtype: torch.dtype) -> bool:
    """Return whether autocast computes in this dtype at this moment."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == dtype


def _own(module: Any, *args: Any, **kwargs: Any) -> Any:
    return type(module).forward(module, *args, **kwargs)


def _norm_forward(module: Any, eps: float, x: Tensor) -> Any:
    if x.dtype != torch.float32 or module.weight.requires_grad or module.weight.dtype != torch.float32:
        return _own(module, x)
    return normed(x, module.weight, eps)


def _gated_forward(module: Any, group: Joined, down: Joined, x: Tensor) -> Any:
    if not (_low(group.wide.dtype) and group.usual() and down.usual()):
        return _own(module, x)
    return down(gated(group(x)))


def _attention_forward(module: Any, group: Joined, last: Joined, scale: float, *args: Any, **kwargs: Any) -> Any:
    x: Any = kwargs.get("hidden_states")
    positions: Any = kwargs.get("position_embeddings")
    plain = not args and _plain_call(x, positions, kwargs)
    if not (plain and _low(group.wide.dtype) and group.usual() and last.usual()):
        return _own(module, *args, **kwargs)
    q, k, v = turned(group(x), positions[0], positions[1], group.parts[0].last // module.head_dim)
    out, _ = attend(module, q, k, v, None, scaling=scale)
    return last(out.flatten(2)), None


@contextlib.contextmanager
def slim_blocks(kinds: Kinds, group_of: Callable[[list[Any]], Joined]) -> Iterator[None]:
    """Make modules of these kinds compute as above during the block. The weights of their layers must already have the
    precision of the forward pass. group_of: joins layers that read the same x.
    """
    try:
        for module in kinds.norms:
            module.forward = partial(_norm_forward, module, _epsilon(module) or 0.0)
        for module in kinds.gates:
            group, down = group_of([module.gate_proj, module.up_proj]), group_of([module.down_proj])
            module.forward = partial(_gated_forward, module, group, down)
        for module in kinds.attentions:
            group, last = group_of([module.q_proj, module.k_proj, module.v_proj]), group_of([module.o_proj])
            module.forward = partial(_attention_forward, module, group, last, module.scaling)
        yield
    finally:
        for module in (*kinds.norms, *kinds.gates, *kinds.attentions):
            vars(module).pop("forward", None)
