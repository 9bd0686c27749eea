"""Read what a model computes at the subjects of edits: keys, values and hidden states, for several layers at once.

A forward pass ends at the last layer that is asked for, and each row at its subject's last token: nothing after them
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from posttrain.editing.edits import Row
from posttrain.editing.sites import Site, Sites, first_of

__all__ = ["Seen", "batches", "look", "padded", "replaced_forwards", "stopping_after"]

BATCH_TOKENS = 8192
"""Largest number of padded tokens in a forward pass without gradients."""


class Seen(NamedTuple):
    """What was read at each row's subject, by layer: keys (N, d_in), the inputs of the edited matrices; values
    (N, D), their outputs; states (N, D), the outputs of the layers."""

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    states: dict[int, Tensor]


class _Enough(Exception):
    """Ends a forward pass."""


@contextmanager
def stopping_after(module: nn.Module) -> Iterator[None]:
    """Within this block, a forward pass ends when this module has run, without an error."""

    def stop(_: nn.Module, args: Any, output: Any) -> None:
        raise _Enough

    handle = module.register_forward_hook(stop)
    try:
        yield
    except _Enough:
        pass
    finally:
        handle.remove()


@contextmanager
def replaced_forwards(functions: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within this block, modules compute these functions instead."""
    own = {module: vars(module).get("forward") for module in functions}
    for module, function in functions.items():
        vars(module)["forward"] = function
    try:
        yield
    finally:
        for module, was in own.items():
            del vars(module)["forward"]
            if was is not None:
                vars(module)["forward"] = was


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the indices of rows, the longest first, in batches of at most `most` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, most // max(lengths[order[0]], 1))
        yield order[:count]
        order = order[count:]


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return rows of ids as a tensor (B, T), filled up on the right with each row's last token. Attention looks back
    only, so no mask is needed.
    """
    width = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=device)


class _Reader:
    """Collects what was computed at the subjects. It gets the batch before each forward pass."""

    def __init__(self) -> None:
        self.parts: dict[tuple[str, int], list[Tensor]] = {}
        self.shape: tuple[int, ...] = ()
        self.at = torch.empty(0)

    def keep(self, what: str, layer: int, states: Tensor) -> None:
        """Keep the hidden states (B, T, d), or (B T, d), at each row's subject."""
        whole = states.reshape(*self.shape, states.shape[-1])
        self.parts.setdefault((what, layer), []).append(raised(whole[torch.arange(len(whole)), self.at]))

    def of_module(self, layer: int) -> Any:
        """Return the hook of an edited module."""

        def read(_: nn.Module, args: Any, output: Tensor) -> None:
            self.keep("keys", layer, args[0])
            self.keep("values", layer, output)

        return read

    def of_layer(self, layer: int) -> Any:
        """Return the hook of a layer."""

        def read(_: nn.Module, args: Any, output: Any) -> None:
            self.keep("states", layer, first_of(output))

        return read


@torch.no_grad()
def look(sites: Sites, rows: Sequence[Row], layers: Sequence[Site], *, batch_tokens: int = BATCH_TOKENS) -> Seen:
    """Return keys, values and states of the rows at their subjects, in float32 or finer and in the order of the rows.
    layers: the sites to read, in the order of the layers.
    """
    model: Any = sites.model
    reader = _Reader()
    order: list[int] = []
    with ExitStack() as stack:
        for site in layers:
            block = model.get_submodule(sites.layers[site.layer])
            stack.enter_context(sites.module(site).register_forward_hook(reader.of_module(site.layer)))
            stack.enter_context(block.register_forward_hook(reader.of_layer(site.layer)))
        for batch in batches([row.at + 1 for row in rows], batch_tokens):
            order += batch
            ids = padded([rows[i].ids[: rows[i].at + 1] for i in batch], model.device)
            reader.shape, reader.at = ids.shape, torch.tensor([rows[i].at for i in batch], device=model.device)
            with stopping_after(model.get_submodule(sites.layers[layers[-1].layer])):
                model(input_ids=ids, use_cache=False)
    back = torch.tensor(order).argsort()
    seen = Seen({}, {}, {})
    for (what, layer), pieces in reader.parts.items():
        seen._asdict()[what][layer] = torch.cat(pieces)[back.to(pieces[0].device)]
    return seen


def raised(states: Tensor) -> Tensor:
    """Return a copy in float32, unless it is float64."""
    return states.to(torch.promote_types(states.dtype, torch.float32)).clone()
