"""Houlsby's bottleneck adapters: a small network after the attention and after the feed-forward part of every layer.

    h' = h + W_up f(W_down h + b_down) + b_up,   W_down: (m, d),   W_up: (d, m) zero at the start

h is the output of the sub-layer, before it is added to the residual stream. Houlsby et al. 2019, arXiv:1902.00751,
section 2.1; there W_up starts near zero (std 0.01). Pfeiffer et al. 2020, arXiv:2005.00247, put adapters after the
feed-forward part only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from posttrain.errors import PosttrainError, Problem
from posttrain.models.added import Added, two_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Bottleneck", "Bottlenecks", "adapted_modules"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
PARTS = {
    "attention": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe"),
}
"""Names that models give to the two parts of a layer."""


class Bottlenecks(Added):
    """The adapters of all layers. The settings are: where (both, mlp, attention), size (m) or reduction (d / m),
    activation, dropout, init_std (of W_down), seed, modules (names of modules after which adapters are put, or None).
    """

    kind: ClassVar[str] = "adapter"

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings)
        self.names = adapted_modules(model, settings["where"], settings["modules"])
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the global random state does not change
            torch.manual_seed(int(settings["seed"]))
            self.adapters = nn.ModuleList(
                Bottleneck(self, width, settings) for width in _widths(model, self.names).values()
            )

    def connect(self, model: PreTrainedModel) -> None:
        """Register a hook on each module."""
        for name, adapter in zip(self.names, self.adapters, strict=True):
            model.get_submodule(name).register_forward_hook(adapter.behind)


class Bottleneck(nn.Module):
    """One adapter for hidden states of `width` numbers. It computes in float32, whatever the type of the states is."""

    def __init__(self, owner: Bottlenecks, width: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        size = settings["size"] or max(1, width // settings["reduction"])
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        self.activation = ACTIVATIONS[settings["activation"]]
        self.dropout = float(settings["dropout"])
        self._owner = (owner,)  # in a tuple, so that it is not a submodule
        std = float(settings["init_std"])
        nn.init.trunc_normal_(self.down.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return the changed hidden states: (..., d) -> (..., d)."""
        inside = self.activation(self.down(states.to(self.down.weight.dtype)))
        change = self.up(functional.dropout(inside, self.dropout, self.training))
        return states + change.to(states.dtype)

    def behind(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Change the hidden states, which are the output or the first of several outputs. This is the forward hook."""
        if not self._owner[0].on:
            return None
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


def adapted_modules(model: PreTrainedModel, where: str = "both", modules: Sequence[str] | None = None) -> list[str]:
    """Return the names of the modules after which adapters are put, in the model's order.

    These are the modules that have names ending with one of `modules`, or else the sub-layers of each layer. Raise
    PosttrainError that lists the layer's modules if there are none.
    """
    if modules is not None:
        endings = tuple(f".{name}" for name in modules)
        found = [name for name, _ in model.named_modules() if f".{name}".endswith(endings)]
        lacking = [end for end in modules if not any(f".{name}".endswith(f".{end}") for name in found)]
        if lacking:
            raise PosttrainError(_nowhere(model, "tuner.modules", f"no module is called {', '.join(lacking)}"))
        return found
    found = []
    for prefix, layer in _layers(model):
        inside = [_behind(layer, part) for part in PARTS if where in (part, "both")]
        if None in inside:
            raise PosttrainError(_nowhere(model, prefix, "attention and feed-forward part are not found"))
        found += [f"{prefix}.{name}" for name in inside]
    if not found:
        raise PosttrainError(_nowhere(model, type(model).__name__, "its layers are not found"))
    return found


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's layers with their names: the module list with as many entries as the configuration says."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            children = {child for child, _ in module[0].named_children()}
            if children & set(PARTS["attention"]):
                yield from ((f"{name}.{number}", layer) for number, layer in enumerate(module))
                return


def _behind(layer: nn.Module, part: str) -> str | None:
    """Return the name of one of a layer's two parts; None if it is not found.

    BERT's layout adds the residual inside a part. There the name is that of the part's output matrix; the output matrix
    of the feed-forward part belongs to the layer itself."""
    name, inside = next((name for name in PARTS[part] if name in layer._modules), None), dict(layer.named_modules())
    if part == "attention":
        return f"{name}.output.dense" if f"{name}.output.dense" in inside else name
    return name or ("output.dense" if "output.dense" in inside else None)


def _nowhere(model: PreTrainedModel, location: str, cause: str) -> Problem:
    first = next(_layers(model), None)
    shown = first[1] if first else model
    names = [name for name, _ in shown.named_modules() if name][:24]
    return Problem(location, cause, f"name modules in tuner.modules; there are {', '.join(names)}")


def _widths(model: PreTrainedModel, names: list[str]) -> dict[str, int]:
    """Return the width of each module's output, found by a forward pass. Raise PosttrainError if one returns none."""
    found: dict[str, int] = {}

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, Tensor) and states.is_floating_point():
            found[name] = states.shape[-1]

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(partial(look, name)))
        two_tokens(model)
    silent = [name for name in names if name not in found]
    if silent:
        raise PosttrainError(_nowhere(model, silent[0], "gives no hidden states in a forward pass"))
    return {name: found[name] for name in names}
