"""LoReFT: a low-rank change of hidden states at a few positions of the prompt, after chosen layers.

    Phi(h) = h + R^T (W h + b - R h),   R, W: (r, d),   b: (r,),   the rows of R orthonormal

In the r-dimensional subspace that R spans, Phi replaces the state R h by W h + b; orthogonal to it nothing changes.
h is the output of a layer, in the residual stream. Wu et al. 2024, arXiv:2404.03592, eq. 2 and section 3.3: the first p
and the last s positions of the prompt are changed, and never those of the answer.

R comes from a free matrix of its size, the frame, by Gram-Schmidt. So the parameters are plain tensors, which any
optimiser moves and any folder holds; torch's parametrizations.orthogonal keeps a second matrix beside its parameter,
which would have to be saved and copied along. W = R and b = 0 at the start, so that Phi is the identity. (The authors'
code draws W at random, so there training begins beside the model.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from posttrain.errors import PosttrainError, Problem
from posttrain.models.added import two_tokens
from posttrain.models.layers import layers_of
from posttrain.models.marks import ALONE, FIRST, Marked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Loreft", "Subspaces", "groups_of", "orthonormal", "reft"]


def orthonormal(frame: Tensor) -> Tensor:
    """Return the Gram-Schmidt basis of rows (..., r, d), r at most d, which has the same first, first two, ... spans.
    Rows that are orthonormal are returned as they are, up to rounding.
    """
    basis, upper = torch.linalg.qr(frame.mT)  # (..., d, r), (..., r, r)
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(basis)  # of each row on itself
    return (basis * signs[..., None, :]).mT


def reft(states: Tensor, rotation: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return h + R^T ((W - R) h + b) for states h (n, d), R and W (r, d), b (r,)."""
    return states + (states @ (weight - rotation).mT + bias) @ rotation


def groups_of(prefix: int, suffix: int, share: str) -> int:
    """Return how many times the positions have parameters of their own: once together (`all`), once for each end of the
    prompt (`ends`), or once for each position (`none`).
    """
    return {"all": 1, "ends": (prefix > 0) + (suffix > 0), "none": prefix + suffix}[share]


class Loreft(Marked):
    """The changes after all chosen layers. The settings are: rank (r), prefix (p), suffix (s), share (all, ends, none),
    layers (their numbers, negative ones from the output; None: all), seed.

    In a prompt of fewer than p + s tokens the suffix comes first: no token is changed twice.
    """

    kind: ClassVar[str] = "loreft"

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings)
        self.prefix, self.suffix, self.share = (settings[name] for name in ("prefix", "suffix", "share"))
        self.layers = chosen_layers(model, settings["layers"])
        width, rank = width_behind(model, self.layers), int(settings["rank"])
        if rank > width:
            cause = f"{rank}, and the hidden states have {width} numbers"
            raise PosttrainError(Problem("tuner.rank", cause, f"at most {width}"))
        draw = torch.Generator().manual_seed(int(settings["seed"]))
        size = groups_of(self.prefix, self.suffix, self.share), rank, width
        self.subspaces = nn.ModuleList(Subspaces(self, torch.randn(size, generator=draw)) for _ in self.layers)

    def connect(self, model: PreTrainedModel) -> None:
        """Register a hook on each chosen layer, before other hooks, so that these see the changed states."""
        super().connect(model)
        for name, subspaces in zip(self.layers, self.subspaces, strict=True):
            assert isinstance(subspaces, Subspaces)
            subspaces.begin()
            model.get_submodule(name).register_forward_hook(subspaces.after, prepend=True)

    def marks(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the marks of tokens by their place in the prompt; see `Marked`."""
        own = self.share == "none"
        of_prefix = before if own else torch.zeros_like(before)
        of_suffix = after + self.prefix if own else torch.full_like(after, self.share == "ends" and self.prefix > 0)
        last = (after >= 0) & (after < self.suffix)
        first = (after >= self.suffix) & (before < self.prefix)
        return torch.where(last, of_suffix + FIRST, torch.where(first, of_prefix + FIRST, ALONE))


class Subspaces(nn.Module):
    """The changes after one layer: frame and W (G, r, d), b (G, r), where G is the number of groups. It computes in
    float32 or finer, whatever the type of the states is.
    """

    def __init__(self, owner: Loreft, drawn: Tensor) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that it is not a submodule
        start = orthonormal(drawn)
        self.frame = nn.Parameter(start)
        self.weight = nn.Parameter(start.clone())
        self.bias = nn.Parameter(start.new_zeros(start.shape[:2]))

    @torch.no_grad()
    def begin(self) -> None:
        """Set W to R as this device computes it, so that the start is the identity in every bit."""
        self.weight.copy_(self.rotation())

    def rotation(self) -> Tensor:
        """Return R of all groups, (G, r, d)."""
        return orthonormal(_fine(self.frame))

    def forward(self, states: Tensor) -> Tensor:
        """Return the changed hidden states: (B, T, d) -> (B, T, d)."""
        places = self._owner[0].there(states)
        if not places:
            return states
        with torch.autocast(states.device.type, enabled=False):
            rotation, weight, bias = self.rotation(), _fine(self.weight), _fine(self.bias)
            flat = states.flatten(0, 1)
            changed = [reft(flat[at].to(rotation.dtype), rotation[g], weight[g], bias[g]) for g, at in places]
            made = flat.index_copy(0, torch.cat([at for _, at in places]), torch.cat(changed).to(flat.dtype))
        return made.view_as(states)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Change the layer's output, or the first of its outputs. This is the forward hook."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


def _fine(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def chosen_layers(model: PreTrainedModel, numbers: list[int] | None) -> list[str]:
    """Return the names of the layers with these numbers. Raise PosttrainError if there are no such layers."""
    names = layers_of(model)
    count = len(names)
    if numbers is None:
        return names
    wrong = [n for n in numbers if not -count <= n < count]
    if wrong or not numbers:
        cause = f"there is no layer {', '.join(map(str, wrong))}" if wrong else "no layer is chosen"
        raise PosttrainError(Problem("tuner.layers", cause, f"the model has layers 0 to {count - 1}"))
    return [names[n] for n in sorted({n % count for n in numbers})]


def width_behind(model: PreTrainedModel, layers: Sequence[str]) -> int:
    """Return the width d of the layers' outputs, found by a forward pass of two tokens. Raise PosttrainError for layers
    that do not run once each and return states (B, T, d).
    """
    if model.config.is_encoder_decoder:
        cause = "its encoder and its decoder have layers, and a prompt is in one of them only"
        raise PosttrainError(Problem(type(model).__name__, cause, "use lora"))
    found: list[torch.Size] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found.append(states.shape if isinstance(states, Tensor) else torch.Size())

    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(look))
        two_tokens(model)
    if len(found) != len(layers) or len(set(found)) > 1 or found[0][:2] != (1, 2) or len(found[0]) != 3:
        shapes = ", ".join(str(tuple(shape)) for shape in dict.fromkeys(found)) or "nothing"
        cause = f"its layers do not each give states of (rows, tokens, width), but {shapes} for two tokens"
        raise PosttrainError(Problem(type(model).__name__, cause, "use lora"))
    return int(found[0][2])
