"""Find where facts are stored: the output matrix of each layer's feed-forward part, for any decoder of transformers.

The feed-forward part is read as an associative memory: its last matrix W maps a key k (what the part has computed from
the subject) to a value v = W k that is added to the residual stream (Geva et al. 2021, arXiv:2012.14913; Meng et al.
2022, arXiv:2202.05262). Names of modules say nothing here. In each layer the linear modules are taken from the last one
that runs to the first, and a trial decides: a vector d is added to the module's output, and the layer's output must
change by factor * d, or by the norm's image of it where the layer puts a norm behind its feed-forward part. The output
of the attention part does not pass, because the feed-forward part reads it.

Routed experts are not found in this way, as their outputs are not one vector per token; a dense or shared expert is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.models.added import at_rest
from posttrain.models.logits import UNFIT, core_of

__all__ = ["Site", "Sites", "find_sites", "first_of", "hooked", "passes", "replaced"]

TOLERANCE = 1e-3
"""Largest error of the trial in float32 or finer, as a share of the change of the layer's output."""
COARSE = 0.1
"""The same limit in half precision."""


def first_of(output: Any) -> Tensor:
    """Return the hidden states of a layer's or module's output: the output itself, or the first of several."""
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found


def replaced(output: Any, states: Tensor) -> Any:
    """Return an output like the given one, with other hidden states."""
    return (states, *output[1:]) if isinstance(output, tuple | list) else states


class Site(NamedTuple):
    """The output matrix of one layer's feed-forward part.

    layer: its number, from 0; name: of the module; weight: name of its parameter; transposed: the parameter is stored
    as (d_in, d_out), as GPT-2's is; inputs: d_in, the width of keys; factor: by which the layer multiplies the output;
    norm: the name of the norm behind it, or "".
    """

    layer: int
    name: str
    weight: str
    transposed: bool
    inputs: int
    factor: float = 1.0
    norm: str = ""

    def oriented(self, weight: Tensor) -> Tensor:
        """Return the parameter as W, (d_out, d_in), as a view."""
        return weight.T if self.transposed else weight


@dataclass(frozen=True, eq=False)
class Sites:
    """The editable places of a model. Each layer is tried when it is asked for.

    layers: the names of all layers; linear: for each layer, its linear modules in the order in which they run; inputs:
    what each layer was given when a few tokens were read, positional and by keyword: a trial runs the layer alone.
    """

    model: PreTrainedModel
    layers: tuple[str, ...]
    linear: tuple[tuple[str, ...], ...]
    inputs: tuple[tuple[Any, dict[str, Any]], ...]
    tried: dict[int, Site | str] = field(default_factory=dict)

    def at(self, layer: int, location: str = "layers") -> Site:
        """Return the site of a layer; negative numbers count from the end. Raise ConfigError if there is no such layer,
        and PosttrainError, which gives the reason, if it cannot be edited.
        """
        count = len(self.layers)
        number = layer + count if layer < 0 else layer
        if not 0 <= number < count:
            cause = f"there is no layer {layer}: {type(self.model).__name__} has layers 0 to {count - 1}"
            raise ConfigError(Problem(location, cause, "see: posttrain trace MODEL FACTS"))
        if number not in self.tried:
            with at_rest(self.model), torch.no_grad():
                self.tried[number] = _tried(self, number)
        found = self.tried[number]
        if isinstance(found, str):
            mend = "choose another layer (in some models a few layers have no routed experts)"
            raise PosttrainError(Problem(location, f"layer {number} cannot be edited: {found}", mend))
        return found

    def read(self, layer: int) -> None:
        """Run one layer on the few tokens, for the hooks of a trial."""
        args, keywords = self.inputs[layer]
        self.model.get_submodule(self.layers[layer])(*args, **keywords)

    def module(self, site: Site) -> nn.Module:
        """Return the module that has the matrix."""
        return self.model.get_submodule(site.name)

    def weight(self, site: Site) -> nn.Parameter:
        """Return the parameter as it is stored."""
        return self.model.get_parameter(site.weight)


def find_sites(model: Any) -> Sites:
    """Return the editable places of a decoder. Raise PosttrainError for a model that is none."""
    core = core_of(model)
    layers = _layers(core)
    with at_rest(core), torch.no_grad():
        called, inputs = _calls(core, layers)
    return Sites(core, tuple(layers), tuple(map(tuple, called)), tuple(inputs))


def _layers(core: PreTrainedModel) -> list[str]:
    """Return the names of the layers: the first list of modules of one class with as many as the configuration says."""
    if core.config.is_encoder_decoder:
        cause = f"{type(core).__name__} is an encoder and a decoder; editors know decoders"
        raise PosttrainError(Problem(core.name_or_path, cause))
    count = core.config.get_text_config().num_hidden_layers
    for name, module in core.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{name}.{i}" for i in range(count)]
    raise PosttrainError(Problem(core.name_or_path, f"no list of {count} layers is found in {type(core).__name__}"))


# ---- trials ----------------------------------------------------------------------------------------------------------


def _ids(core: PreTrainedModel) -> Tensor:
    rows = core.get_input_embeddings().weight.shape[0]
    return (torch.arange(5, 12, device=core.device) % rows).view(1, 7)


def _read_few(core: PreTrainedModel) -> None:
    """Read a few tokens. Raise PosttrainError if the model cannot read token ids alone."""
    try:
        core(input_ids=_ids(core), use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:
        cause = f"a few tokens cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise PosttrainError(Problem(type(core).__name__, cause)) from error


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    """Within this block the hooks are there; they are removed at its end."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _calls(core: PreTrainedModel, layers: list[str]) -> tuple[list[list[str]], list[tuple[Any, dict[str, Any]]]]:
    """Return, for each layer, the names of its linear modules in the order in which they run, and its inputs."""
    called: list[list[str]] = [[] for _ in layers]
    inputs: list[tuple[Any, dict[str, Any]]] = []
    handles = []
    for number, layer in enumerate(layers):
        block = core.get_submodule(layer)
        handles.append(block.register_forward_pre_hook(lambda m, a, k: inputs.append((a, k)), with_kwargs=True))
        for name, module in block.named_modules(prefix=layer):
            if isinstance(module, nn.Linear | Conv1D):
                handles.append(
                    module.register_forward_hook(lambda m, a, o, at=number, name=name: called[at].append(name))
                )
    with hooked(*handles):
        _read_few(core)
    if len(inputs) != len(layers):
        cause = f"{len(layers)} layers run {len(inputs)} times for a text"
        raise PosttrainError(Problem(type(core).__name__, cause))
    return called, inputs


def _tried(sites: Sites, number: int) -> Site | str:
    """Return the site of a layer, or why it has none."""
    core = sites.model
    width = core.get_input_embeddings().weight.shape[1]
    reason = "it has no linear module that writes one vector per token"
    for name in reversed(sites.linear[number]):
        module = core.get_submodule(name)
        weight = module.weight
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or weight.dim() != 2:
            reason = f"the weights of {name} are quantised"
            continue
        transposed = isinstance(module, Conv1D)
        outputs, inputs = weight.T.shape if transposed else weight.shape
        passed = passes(sites, number, name) if outputs == width else None
        if passed is not None:
            return Site(number, name, f"{name}.weight", transposed, inputs, *passed)
        reason = "no linear module adds its output to the layer's: routed experts stand there, or a norm over the sum"
    return reason


def passes(sites: Sites, number: int, name: str) -> tuple[float, str] | None:
    """Add a vector to the output of a layer's module and look at the layer's. Return factor and norm; None if they do
    not tell.
    """
    core, layer = sites.model, sites.layers[number]
    before: list[Tensor] = []
    after: list[Tensor] = []
    own: list[Tensor] = []
    kept: list[Any] = []
    norms: list[tuple[str, nn.Module]] = []
    block = core.get_submodule(layer)
    module = core.get_submodule(name)

    def put(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        own.append(output)
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(output.shape[-1], generator=draw).to(output)
        kept.append(noise * output.float().square().mean().sqrt().clamp_min(1e-3).to(output))
        return output + kept[0]

    def reads(name: str, inner: nn.Module) -> Any:
        def hook(_: nn.Module, args: Any) -> None:
            if own and args and isinstance(args[0], Tensor) and args[0] is own[0]:
                norms.append((name, inner))

        return inner.register_forward_pre_hook(hook)

    watch = [block.register_forward_hook(lambda m, a, o: before.append(first_of(o)))]
    watch.append(module.register_forward_hook(lambda m, a, o: own.append(o)))
    watch += [reads(n, m) for n, m in block.named_modules(prefix=layer) if m is not module and not list(m.children())]
    with hooked(*watch):
        sites.read(number)
    if len(own) != 1 or own[0].numel() != before[0].numel():
        return None  # it runs several times, or for some of the tokens
    clean = own.pop()
    if not bool(torch.isfinite(before[0]).all()):
        cause = f"{layer} computes numbers that are not finite"
        mend = "load the model in float32, or copy it again"
        raise PosttrainError(Problem(type(core).__name__, cause, mend))
    with hooked(
        module.register_forward_hook(put), block.register_forward_hook(lambda m, a, o: after.append(first_of(o)))
    ):
        sites.read(number)
    change, added = (after[0] - before[0]).double(), kept[0].double()
    limit = TOLERANCE if clean.dtype in (torch.float32, torch.float64) else COARSE
    norm, inner = norms[-1] if norms else ("", nn.Identity())
    image = inner(clean + kept[0]) - inner(clean)
    plain = torch.allclose(image.double(), added.expand_as(image), rtol=limit, atol=limit * float(added.abs().max()))
    expected = (added.expand_as(image) if plain else image.double()).reshape(change.shape)
    factor = float((change * expected).sum() / expected.square().sum())
    if factor <= 0 or float((change - factor * expected).norm()) > limit * float(change.norm()):
        return None
    return 1.0 if abs(factor - 1) < limit else factor, "" if plain else norm
