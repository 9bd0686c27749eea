"""The parts of each layer whose outputs causal tracing restores: the layer, its feed-forward part, its attention.

The feed-forward part is found in `sites.py`: its last matrix, whose output the layer adds to the residual stream. The
attention part is found by the same trial while the feed-forward part is held fixed: its output is replaced by what it
was without any change. What is then added to the output of a linear module reaches the layer's output as it is (or
through a norm behind the part) only if that module writes to the residual stream. So names say nothing here, either,
and a layer with linear attention or with two parts beside each other is read as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from posttrain.editing.sites import Site, Sites, hooked, passes
from posttrain.errors import PosttrainError, Problem
from posttrain.models.added import at_rest

__all__ = ["KINDS", "WINDOW", "Kind", "Places", "auto_window", "find_places", "window_of"]

Kind = Literal["state", "mlp", "attn"]
"""What is restored: `state`, the output of one layer; `mlp` and `attn`, the outputs of the feed-forward parts or of the
attention parts of several layers in a row."""
KINDS: tuple[Kind, ...] = ("state", "mlp", "attn")
WINDOW = 10
"""Layers in a window, as in the paper, whose models have 28 to 48 layers."""
SHALLOW = 6
"""Models with fewer layers than this are traced layer by layer."""


def auto_window(count: int) -> int:
    """Return the width of windows: 10 layers; of a model with fewer than 30 a third of them, rounded down to an odd
    number, so that a window has a middle layer, and at least 3; of one with fewer than 6 a single layer.

    >>> [auto_window(count) for count in (2, 6, 12, 24, 30, 48)]
    [1, 3, 3, 7, 10, 10]
    """
    third = count // 3
    if third >= WINDOW:
        return WINDOW
    return max(3, third - (third + 1) % 2) if count >= SHALLOW else 1


def window_of(layer: int, width: int, count: int) -> range:
    """Return the layers of the window around a layer: [layer - width/2, layer + width/2), cut at both ends.

    >>> [list(window_of(layer, 4, 6)) for layer in (0, 3, 5)]
    [[0, 1], [1, 2, 3, 4], [3, 4, 5]]
    """
    return range(max(0, layer - width // 2), min(count, layer - (-width // 2)))


class Places(NamedTuple):
    """The modules whose outputs are restored. layers: the names of the layers; mlp, attn: for each layer, the names of
    the modules of that part, empty if it is not traced; width: of windows, in layers.
    """

    layers: tuple[str, ...]
    mlp: tuple[tuple[str, ...], ...]
    attn: tuple[tuple[str, ...], ...]
    width: int

    def reach(self, kind: Kind, layer: int) -> range:
        """Return the layers in which something is restored."""
        return range(layer, layer + 1) if kind == "state" else window_of(layer, self.width, len(self.layers))

    def names(self, kind: Kind, layer: int) -> list[str]:
        """Return the modules that are restored."""
        if kind == "state":
            return [self.layers[layer]]
        part = self.mlp if kind == "mlp" else self.attn
        return [name for at in self.reach(kind, layer) for name in part[at]]

    @property
    def every(self) -> list[str]:
        """All modules."""
        return [*self.layers, *(name for part in (self.mlp, self.attn) for names in part for name in names)]


def find_places(sites: Sites, kinds: Sequence[Kind], width: int | None = None) -> Places:
    """Return the places of a model. width: of windows, found from the number of layers if None.

    Raise PosttrainError, which names the layer, for a layer without a feed-forward part that can be edited, and for one
    without an attention part.
    """
    count = len(sites.layers)
    nothing: tuple[tuple[str, ...], ...] = ((),) * count
    if not {"mlp", "attn"} & set(kinds):
        return Places(sites.layers, nothing, nothing, width or auto_window(count))
    try:
        own = [sites.at(layer) for layer in range(count)]
    except PosttrainError as error:
        mend = "trace whole layers alone: --set kinds=[state]"
        raise type(error)(*(Problem(p.location, p.cause, mend) for p in error.problems)) from error
    mlp = tuple((_outer(sites.model, site.name),) for site in own) if "mlp" in kinds else nothing
    attn = tuple(map(tuple, _attention(sites, own))) if "attn" in kinds else nothing
    return Places(sites.layers, mlp, attn, width or auto_window(count))


def _outer(core: nn.Module, name: str) -> str:
    """Return the module that stands in the model: with an adapter on it, the one around its matrices."""
    parts = name.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((one for one in around if isinstance(core.get_submodule(one), BaseTunerLayer)), name)


def _attention(sites: Sites, own: Sequence[Site]) -> Iterator[list[str]]:
    """Yield, for each layer, the modules that write to the residual stream besides the feed-forward part."""
    core = sites.model
    width = core.get_input_embeddings().weight.shape[1]
    guess: list[str] = []
    with at_rest(core), torch.no_grad():
        for site, layer in zip(own, sites.layers, strict=True):
            mlp = _outer(core, site.name)
            names = [name for name in dict.fromkeys(sites.linear[site.layer]) if not f"{name}.".startswith(f"{mlp}.")]
            names = [name for name in names if _writes(core, name, width)]
            same = [name for name in names if name.removeprefix(layer) in guess]  # as in the layer before
            with _held(sites, site.layer, mlp):
                found = [name for name in same if passes(sites, site.layer, name) is not None]
                if not found or len(found) < len(guess):
                    found = [name for name in names if passes(sites, site.layer, name) is not None]
            if not found:
                cause = f"no attention part is found in layer {site.layer}: no module adds its output to the layer's"
                raise PosttrainError(Problem(type(core).__name__, cause, "trace without it: --set kinds=[state,mlp]"))
            guess = [name.removeprefix(layer) for name in found]
            yield list(dict.fromkeys(_outer(core, name) for name in found))


def _writes(core: nn.Module, name: str, width: int) -> bool:
    """Return whether a linear module's output is as wide as the residual stream."""
    weight = core.get_submodule(name).weight
    return isinstance(weight, Tensor) and width in weight.shape


@contextmanager
def _held(sites: Sites, layer: int, name: str) -> Iterator[None]:
    """Within this block, a layer's module gives what it gives for the few tokens of a trial, whatever it reads."""
    module = sites.model.get_submodule(name)
    values: list[Tensor] = []
    with hooked(module.register_forward_hook(lambda m, a, o: values.append(o.clone()))):
        sites.read(layer)
    with hooked(module.register_forward_hook(lambda m, a, o: values[0].clone())):
        yield
