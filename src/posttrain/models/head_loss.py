"""Losses of tokens without the logits of all tokens: the output head runs in chunks, at supervised positions only.

A vocabulary of 49,152 words makes 200 KB of float32 logits for each position, and a plain cross-entropy holds three or
four copies of them. Here the forward pass ends before the head. The hidden states of the supervised positions pass
through the head in chunks, and only each chunk's loss and the gradient of its hidden states are kept (Wijmans et al.
2024, arXiv:2411.09009; Liger-Kernel, arXiv:2410.10989).

A trial decides which heads can be used in this way: the logits of a few tokens must equal `softcap(factor * (W h + b))`
with the head's own W and b. If they do not, or if the head is changed (LoRA on it, shards of it), `plain_head` returns
None and the caller computes all logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from posttrain.models.adapters import virtual_columns
from posttrain.models.line import line_for
from posttrain.models.logits import core_of
from posttrain.models.marks import bare

__all__ = [
    "Function",
    "PlainHead",
    "chunk_rows",
    "chunked",
    "chunked_nll",
    "head_kept",
    "kept_in",
    "plain_head",
    "states_at",
]

CHUNK_ELEMENTS = 1 << 23
"""Number of logits in a chunk: 32 MiB in float32."""
TOLERANCE = 1e-4
"""Largest difference of logits in a trial in float32, as a share of their standard deviation."""
COARSE = 1e-2
"""The same limit in half precision, for the root mean square of the differences."""


class PlainHead(NamedTuple):
    """The weights of an output head. Logits are softcap * tanh(factor * (W h + b) / softcap), or factor * (W h + b)
    without a softcap. `weight` is (V, D). `bias` is (V,) or None. `softcap` is 0 if there is none.
    """

    weight: Tensor
    bias: Tensor | None
    factor: float = 1.0
    softcap: float = 0.0

    def precision(self) -> torch.dtype:
        """Return the precision in which the head's product is computed now: autocast's, or that of the weights."""
        kind = self.weight.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype

    def logits(self, hidden: Tensor, precision: torch.dtype) -> Tensor:
        """Return logits (n, V) of hidden states (n, D), in float32 or finer and in a new tensor."""
        with torch.autocast(hidden.device.type, enabled=False):
            return _logits(hidden, kept_in(self.weight, precision), self.bias, self.factor, self.softcap)


Function = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]
"""Maps a chunk's logits to nats (n,) of its tokens and their gradient with respect to the logits, (n, V).

The arguments are: the chunk's logits (n, V), in float32 or finer, which may be overwritten; the chunk's slice of all
tokens; whether a gradient is needed.
"""


def chunk_rows(vocabulary: int) -> int:
    """Return how many tokens pass through the head together."""
    return max(16, CHUNK_ELEMENTS // vocabulary)


# ---- the forward pass without its head -------------------------------------------------------------------------------


def _reading_head(head: nn.Module, read: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `read` with the input of the head at each forward pass. Return the handle that removes this hook."""
    return head.register_forward_pre_hook(lambda _, args: read(args[0]))


@contextmanager
def _spared(head: nn.Linear) -> Iterator[None]:
    """Within this block the head computes nothing: it returns zeros as logits of one position, which take no memory."""
    own = vars(head).get("forward")

    def nothing(hidden: Tensor) -> Tensor:
        return hidden.new_zeros(()).expand(1, 1, len(head.weight))

    vars(head)["forward"] = nothing
    try:
        yield
    finally:
        del vars(head)["forward"]
        if own is not None:
            vars(head)["forward"] = own


def states_at(model: nn.Module, input_ids: Tensor, asked: Tensor) -> Tensor:
    """Return the hidden states (N, D) that the output head would read at the positions `asked`, row by row.

    The model must have a `plain_head`. `input_ids` is (B, T), right-padded; `asked` is (B, T) bool. A beginning that
    rows share is read once where that is faster (`models/line.py`).
    """
    extra = virtual_columns(model)
    found: list[Tensor] = []
    line = line_for(model, input_ids, asked)
    inputs = {"input_ids": input_ids}
    if line is not None:
        inputs = {"input_ids": line.ids, "position_ids": line.positions, "attention_mask": line.mask}

    def read(hidden: Tensor) -> None:
        found.append(hidden[:, extra:][asked] if line is None else hidden[0, line.asked])

    head = core_of(model).get_output_embeddings()
    with _reading_head(head, read), _spared(head):
        model(**inputs, use_cache=False)
    if len(found) != 1:
        raise RuntimeError(f"{type(core_of(model)).__name__} went through its output head {len(found)} times")
    return found[0]


# ---- which heads can be used in chunks -------------------------------------------------------------------------------

_known: WeakKeyDictionary[nn.Module, tuple[ref[nn.Module], tuple[float, float] | None]] = WeakKeyDictionary()
"""Results of trials by head: the model, and its factor and softcap. Weak references keep no model alive."""


def plain_head(model: nn.Module) -> PlainHead | None:
    """Return the output head as weights; None if it computes more than a matrix product, a factor and a softcap."""
    core = core_of(model)
    head = core.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or head._forward_hooks:
        return None  # it is wrapped, or its weights are sharded
    known = _known.get(head)
    if known is None or known[0]() is not core:
        known = _known[head] = (ref(core), _tried(core, head))
    return None if known[1] is None else PlainHead(head.weight, head.bias, *known[1])


@torch.no_grad()
def _tried(core: Any, head: nn.Linear) -> tuple[float, float] | None:
    """Return the factor and softcap with which the head gives the model's own logits for a few tokens. Return None if
    no factor and softcap do."""
    ids = torch.arange(1, 7, device=core.device).view(2, 3) % head.weight.shape[0]
    read: list[Tensor] = []
    with torch.random.fork_rng(), _reading_head(head, read.append), bare(core):
        logits: Tensor = core(input_ids=ids, use_cache=False).logits
    if len(read) != 1 or read[0].shape[:2] != ids.shape or read[0].shape[-1] != head.weight.shape[1]:
        return None
    raw = functional.linear(read[0], head.weight.to(read[0].dtype), head.bias)
    fine = raw.dtype in (torch.float32, torch.float64) and logits.dtype in (torch.float32, torch.float64)
    raw, logits = raw.double(), logits.double()
    if raw.shape != logits.shape:
        return None
    softcap = core.config.get_text_config().to_dict().get("final_logit_softcapping")
    caps = [0.0, *([float(softcap)] if softcap else [])]
    for cap in caps:
        inner = cap * torch.atanh((logits / cap).clamp(-0.999999, 0.999999)) if cap else logits
        for factor in (1.0, float((inner * raw).sum() / raw.square().sum())):
            gap = _applied(raw, factor, cap) - logits
            spread = max(float(logits.std()), 1e-6)
            if fine and float(gap.abs().max()) <= TOLERANCE * max(spread, 1.0):
                return factor, cap
            if not fine and float(gap.square().mean().sqrt()) <= COARSE * spread:
                return factor, cap
    return None


def _applied(raw: Tensor, factor: float, softcap: float) -> Tensor:
    """Return W h + b with factor and softcap applied."""
    if factor != 1.0:
        raw = raw * factor
    return softcap * torch.tanh(raw / softcap) if softcap else raw


_lowered: dict[Tensor, tuple[Tensor, int]] = {}
"""Maps a head's weight to its copy in a lower precision and to the version of the weight that was copied."""


@contextmanager
def head_kept(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within this block, keep a copy of a frozen head's weight in `dtype`. Else every micro batch makes a copy."""
    head = core_of(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    if type(weight) is not nn.Parameter or weight.requires_grad or weight.dtype == dtype:
        yield
        return
    _lowered[weight] = weight.detach().to(dtype), weight._version
    try:
        yield
    finally:
        del _lowered[weight]


def kept_in(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in this precision: the kept copy, or a new one."""
    copy, version = _lowered.get(weight, (weight, weight._version))
    return copy if copy.dtype == dtype and version == weight._version else weight.to(dtype)


# ---- the head, chunk by chunk ----------------------------------------------------------------------------------------


def chunked(hidden: Tensor, head: PlainHead, function: Function, *, rows: int | None = None) -> Tensor:
    """Return `function` of each token's logits, (N,), with gradients for hidden states (N, D) and head.

    If the head's weights are frozen, logits are computed once, and the gradient of the hidden states is computed in the
    forward pass. Otherwise the logits are computed again in the backward pass.
    """
    rows = rows or chunk_rows(head.weight.shape[0])
    return _Chunked.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, head.factor, head.softcap, function, rows, head.precision()
    )


def chunked_nll(hidden: Tensor, head: PlainHead, targets: Tensor, *, rows: int | None = None) -> Tensor:
    """Return the negative log-likelihood of each token in nats, (N,), computed in float32 or finer.

    `hidden` is (N, D) and `targets` is (N,).

    nats_i = logsumexp(z_i) - z_i[y_i], where z_i are the logits of h_i
    """

    def nll(logits: Tensor, at: slice, wants: bool) -> tuple[Tensor, Tensor | None]:
        own = targets[at][:, None]
        logits -= logits.amax(1, keepdim=True)
        said = logits.gather(1, own)[:, 0]
        total = logits.exp_().sum(1)
        nats = total.log() - said
        if not wants:
            return nats, None
        logits /= total[:, None]
        return nats, logits.scatter_add_(1, own, -torch.ones_like(own, dtype=logits.dtype))

    return chunked(hidden, head, nll, rows=rows)


class _Chunked(torch.autograd.Function):
    """The autograd function of `chunked`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: float,
        softcap: float,
        function: Function,
        rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        wants_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        wants = ctx.needs_input_grad[0] and not wants_head
        ctx.rest = (bias, factor, softcap, function, rows, dtype)
        ctx.wants_head = wants_head
        nats: list[Tensor] = []
        gradient = torch.empty_like(hidden) if wants else None
        with torch.autocast(hidden.device.type, enabled=False), torch.no_grad():
            used = kept_in(weight, dtype)
            for at in _cuts(len(hidden), rows):
                logits = _logits(hidden[at], used, bias, factor, softcap)
                capped = logits.clone() if softcap and wants else None
                one, slope = function(logits, at, wants)
                nats.append(one)
                if gradient is not None:
                    assert slope is not None
                    gradient[at] = _raw_slope(slope, capped, factor, softcap).to(dtype) @ used
        ctx.save_for_backward(*((gradient,) if gradient is not None else (hidden, weight) if wants_head else ()))
        if nats:
            return torch.cat(nats)
        return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Any, ...]:
        if not ctx.wants_head:
            (gradient,) = ctx.saved_tensors
            return (gradient * given[:, None].to(gradient.dtype), *[None] * 7)
        hidden, weight = ctx.saved_tensors
        bias, factor, softcap, function, rows, dtype = ctx.rest
        fine = torch.promote_types(weight.dtype, torch.float32)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=fine) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=fine) if ctx.needs_input_grad[2] else None
        with torch.autocast(hidden.device.type, enabled=False), torch.no_grad():
            used = kept_in(weight, dtype)
            for at in _cuts(len(hidden), rows):
                logits = _logits(hidden[at], used, bias, factor, softcap)
                capped = logits.clone() if softcap else None
                _, slope = function(logits, at, True)
                raw = _raw_slope(slope, capped, factor, softcap).mul_(given[at, None])  # (n, V)
                if of_bias is not None:
                    of_bias += raw.sum(0)
                raw = raw.to(dtype)
                if of_hidden is not None:
                    of_hidden[at] = (raw @ used).to(of_hidden.dtype)
                if of_weight is not None and dtype == fine:
                    of_weight.addmm_(raw.T, hidden[at].to(dtype))
                elif of_weight is not None:
                    of_weight += raw.T @ hidden[at].to(dtype)
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            *[None] * 5,
        )


def _cuts(count: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, factor: float, softcap: float) -> Tensor:
    """Return logits (n, V), in float32 or finer, in a new tensor."""
    raw = functional.linear(hidden.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    return _applied(raw.to(torch.promote_types(raw.dtype, torch.float32)), factor, softcap)


def _raw_slope(slope: Tensor | None, capped: Tensor | None, factor: float, softcap: float) -> Tensor:
    """Return the gradient with respect to W h + b from `slope`, the gradient with respect to the logits. `capped` holds
    the logits if there is a softcap, else it is None."""
    assert slope is not None
    if capped is not None:
        slope = slope * (1 - (capped / softcap).square_())
    return slope if factor == 1.0 else slope.mul_(factor)
