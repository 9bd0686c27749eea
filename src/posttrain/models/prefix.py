"""A prefix of keys and values in every layer: P-Tuning v2 as in the ChatGLM family's code.

Each layer's attention gets P more keys and values before its own. They come from one table (P, W) with a row per
virtual token. A layer's keys are at 2l and its values at 2l + 1, and W = layers x 2 x key heads x head width. With a
projection, the table is the output of a small network for an embedding. Prefix keys are not rotated and take no
position: the first real token is at 0 (PEFT's PREFIX_TUNING shifts real tokens by P positions). Every token sees the
whole prefix, also in layers with a sliding window. The layouts, N(0, 1) and the dropout of 0.1 are THUDM's
(github.com/THUDM/ChatGLM-6B, ptuning/; there `transformer.prefix_encoder.*`), after Liu et al. 2021, arXiv:2110.07602.

An attention function, registered in transformers' interface, takes the attention module's `LayerPrefix` and puts the
prefix before the keys and values, after rotation and cache. So positions, caches, generation and checkpointing work as
without a prefix. If another attention is set later, the next forward pass raises an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from posttrain.errors import PosttrainError, Problem
from posttrain.models.added import Added, two_tokens

__all__ = ["LINE", "NAMES", "LayerPrefix", "Prefix", "Site", "over", "sites"]

SDPA, EAGER = "posttrain_prefix", "posttrain_prefix_eager"
LINE = "posttrain_prefix_line"
NAMES = (SDPA, EAGER, LINE)
"""Names of the attention functions: over torch's, over the model family's own, and over `inference/flat.py`."""
CHILD = "posttrain_prefix"
"""Name of a LayerPrefix as a child of its attention module."""


class Site(NamedTuple):
    """The attention of one layer. `name` is the name of its module, `heads` the number of heads of keys and values,
    `key` and `value` the width of one head of keys and of values.
    """

    name: str
    heads: int
    key: int
    value: int


class Prefix(Added):
    """The table, or embedding and projection, and the keys and values of all layers during a forward pass. The settings
    are: tokens (P), projection (none, v1, v2), projection_size (h), dropout, init_scale, seed.
    """

    kind: ClassVar[str] = "ptuning_v2"

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings)
        self.sites = sites(model)
        self.tokens = int(settings["tokens"])
        self.width = sum(site.heads * (site.key + site.value) for site in self.sites)
        self.dropout = float(settings["dropout"])
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._attention = (EAGER if model.config.get_text_config()._attn_implementation == "eager" else SDPA,)
        self._config = (model.config.get_text_config(),)
        projection, size, scale = settings["projection"], settings["projection_size"], float(settings["init_scale"])
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the global random state does not change
            torch.manual_seed(int(settings["seed"]))
            self.embedding = nn.Embedding(self.tokens, size if projection == "v1" else self.width)
            self.trans: nn.Sequential | None = None
            if projection != "none":
                first = nn.Linear(self.embedding.embedding_dim, size)
                self.trans = nn.Sequential(first, nn.Tanh(), nn.Linear(size, self.width))
        with torch.no_grad():
            last = self.embedding if self.trans is None else self.trans[2]
            for parameter in last.parameters():
                parameter.mul_(scale)

    def connect(self, model: PreTrainedModel) -> None:
        """Set posttrain's attention function, and give each attention module its prefix."""
        model.set_attn_implementation(self._attention[0])
        for number, site in enumerate(self.sites):
            model.get_submodule(site.name).add_module(CHILD, LayerPrefix(self, number))
        model.get_submodule(_around([site.name for site in self.sites], model)).register_forward_pre_hook(self.renew)

    def table(self) -> Tensor:
        """Return the keys and values of all layers, (P, W), without dropout."""
        return self.embedding.weight if self.trans is None else self.trans(self.embedding.weight)

    @torch.no_grad()
    def flatten(self) -> None:
        """Replace the projection by the table that it computes. Training that continues afterwards is different."""
        table = self.table()
        self.embedding = nn.Embedding(self.tokens, self.width, device=table.device)
        self.embedding.weight.copy_(table)
        self.trans = None
        self.settings["projection"] = "none"

    def renew(self, module: nn.Module, args: Any) -> None:
        """Compute the layers' keys and values, (heads, P, width of a head) each. It runs before each forward pass.
        Raise PosttrainError if another attention function has been set.
        """
        self.layers = []
        if not self.on:
            return
        set_now = self._config[0]._attn_implementation
        if set_now not in NAMES:
            cause = f"its attention was set to {set_now}, which would leave out its prefix"
            raise PosttrainError(Problem(type(module).__name__, cause, f"leave it at {self._attention[0]}"))
        at, table = 0, self.table()
        for site in self.sites:
            pair = []
            for width in (site.key, site.value):
                part = table[:, at : at + site.heads * width]
                pair.append(part.view(self.tokens, site.heads, width).transpose(0, 1))
                at += site.heads * width
            self.layers.append((pair[0], pair[1]))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the keys and values, because they belong to a graph. A copy computes its own."""
        return self.__dict__ | {"layers": []}


class LayerPrefix(nn.Module):
    """A child of an attention module that holds the prefix and the index of the layer."""

    def __init__(self, prefix: Prefix, number: int) -> None:
        super().__init__()
        self.number = number
        self._prefix = (prefix,)  # in a tuple, so that it is not a submodule with parameters that count in every layer

    @property
    def prefix(self) -> Prefix:
        """The model's prefix."""
        return self._prefix[0]

    def before(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys and values with the prefix before them, (B, heads, P + S, d) each, and a mask (B, 1, T, P + S).

        With this mask every token sees the prefix; it is None if none is needed. In training each row draws its own
        dropout.
        """
        prefix = self.prefix
        own = []
        for part, given in zip(prefix.layers[self.number], (key, value), strict=True):
            rows = part.to(given.dtype).expand(len(given), -1, -1, -1)
            own.append(torch.cat([functional.dropout(rows, prefix.dropout, prefix.training), given], dim=2))
        asking, there = query.shape[2], key.shape[2]
        if mask is None and causal and asking > 1:
            # torch's own causal mask would begin at the prefix's first key
            mask = torch.ones(asking, there, dtype=torch.bool, device=key.device).tril()[None, None]
        if mask is not None:
            mask = mask[..., :there]
            seen = mask.new_full((*mask.shape[:-1], prefix.tokens), mask.dtype == torch.bool)
            mask = torch.cat([seen, mask], dim=-1)
        return own[0], own[1], mask


_calls: ContextVar[list[tuple[nn.Module, Tensor, Tensor]] | None] = ContextVar("calls", default=None)


def over(inner: Callable[[nn.Module], Callable[..., Any]], causal_without_mask: bool) -> Callable[..., Any]:
    """Return an attention function that adds the module's prefix and then calls another attention function.

    `inner` returns the other function for a module. `causal_without_mask` says whether the other function is causal if
    it gets no mask.
    """

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        calls = _calls.get()
        if calls is not None:
            if kwargs.get("position_bias") is not None:
                raise ValueError("its positions are a bias on the scores, and a prefix has no position")
            calls.append((module, key, value))
        layer = module._modules.get(CHILD)
        if layer is not None and layer.prefix.on:
            causal = kwargs.get("is_causal")
            if causal is None:
                causal = getattr(module, "is_causal", True)  # as transformers' sdpa does
            key, value, attention_mask = layer.before(
                query, key, value, attention_mask, bool(causal) and causal_without_mask
            )
        return inner(module)(module, query, key, value, attention_mask, **kwargs)

    return attention


AttentionInterface.register(SDPA, over(lambda module: sdpa_attention_forward, True))
AttentionMaskInterface.register(SDPA, sdpa_mask)
# the model family's own attention function is in the Python module of its classes
eager = over(lambda module: vars(sys.modules[type(module).__module__])["eager_attention_forward"], False)
AttentionInterface.register(EAGER, eager)
AttentionMaskInterface.register(EAGER, eager_mask)


def sites(model: PreTrainedModel) -> list[Site]:
    """Run a forward pass and return the attention of every layer in its order.

    Raise PosttrainError if a prefix is not possible: for attention that does not use transformers' interface, that
    several layers share, or that has positions as a bias on the scores.
    """

    def refuse(cause: str) -> PosttrainError:
        mend = "prompt_tuning puts virtual tokens in front of any model"
        return PosttrainError(Problem(type(model).__name__, f"takes no prefix: {cause}", mend))

    was = model.config.get_text_config()._attn_implementation
    if model.config.is_encoder_decoder:
        raise refuse("it has an encoder and a decoder")
    if not model._can_set_attn_implementation():
        raise refuse("its attention does not go through transformers' interface")
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    before = _calls.set(calls)
    try:
        model.set_attn_implementation(EAGER if was == "eager" else SDPA)
        two_tokens(model)
    finally:
        _calls.reset(before)
        model.set_attn_implementation(was)
    names = {module: name for name, module in model.named_modules()}
    found = [Site(names[module], k.shape[1], k.shape[3], v.shape[3]) for module, k, v in calls]
    if not found:
        raise refuse("its attention does not go through transformers' interface")
    if len({site.name for site in found}) < len(found):
        raise refuse("its layers share one attention module")
    return found


def _around(names: list[str], model: nn.Module) -> str:
    """Return the name of the innermost module that contains all these modules and runs (a list of modules cannot)."""
    parts: list[str] = []
    for each in zip(*(name.split(".") for name in names), strict=False):
        if len(set(each)) > 1:
            break
        parts.append(each[0])
    while isinstance(model.get_submodule(".".join(parts)), nn.ModuleList | nn.ModuleDict):
        parts.pop()
    return ".".join(parts)
