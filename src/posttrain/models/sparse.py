"""A change of a few of the model's own numbers. The numbers are chosen once, and their change is trained.

    w' = w,   w'[at] += values,   at: the indices of the mask, chosen by Fisher information or at random

FISH Mask, Sung et al. 2021, arXiv:2111.09839, trains the share of parameters with the largest Fisher information on a
few rows of the task. Only the values are parameters, so optimiser, weight decay and penalties see nothing else. The
folder has indices and values, and the change can be merged into the model exactly. The changed weight is in the module
only while the module runs, so the change is right with recomputed activations, in tied matrices, and under
`torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.added import Added, two_tokens
from posttrain.models.curvature import Example, fisher

__all__ = ["Change", "SparseChange", "largest", "weights_in_use"]


class SparseChange(Added):
    """The changes of all weights. The settings are: share (of the model's parameters), rows (the number of rows that
    are measured), fisher (empirical, sampled, random), seed. Until `look` is called, the indices are random.
    """

    kind: ClassVar[str] = "fishmask"
    looks_at_rows: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings)
        self.owners = weights_in_use(model)
        weights = {name: model.get_parameter(name) for name in self.owners}
        total = sum(weight.numel() for weight in weights.values())
        self.budget = max(1, round(settings["share"] * total))
        generator = torch.Generator().manual_seed(int(settings["seed"]))
        noise = {name: torch.rand(weight.numel(), generator=generator) for name, weight in weights.items()}
        chosen = largest(noise, self.budget)
        self.changes = nn.ModuleList(self.change_of(name, chosen[name], weights[name].numel()) for name in self.owners)

    def change_of(self, name: str, at: Tensor, size: int) -> Change:
        """Return the change of a weight of `size` numbers."""
        return Change(self, name, at)

    def connect(self, model: PreTrainedModel) -> None:
        """Register hooks on every module that owns a weight."""
        for change, owners in zip(self.all_changes(), self.owners.values(), strict=True):
            for owner in owners:
                module = model.get_submodule(owner)
                module.register_forward_pre_hook(change.put_in)
                module.register_forward_hook(change.take_out, always_call=True)

    def all_changes(self) -> list[Change]:
        """Return the changes in the order of the weights."""
        return [change for change in self.changes if isinstance(change, Change)]

    def look(self, model: PreTrainedModel, examples: Callable[[int], Sequence[Example]], say: Any) -> None:
        """Choose the indices with the largest Fisher information at the start, over all weights together."""
        if self.settings["fisher"] == "random":
            return
        weights = {name: model.get_parameter(name) for name in self.owners}
        shown = examples(int(self.settings["rows"]))
        for weight in weights.values():
            weight.requires_grad_(True)
        try:
            with self.switched_off():
                found = fisher(
                    model, weights, shown, kind=self.settings["fisher"], seed=int(self.settings["seed"])
                ).diagonal
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)
        chosen = largest({name: each.reshape(-1) for name, each in found.items()}, self.budget)
        for change in self.all_changes():
            change.take(chosen[change.name])
        parts = sum(bool(len(change.values)) for change in self.all_changes())
        say(f"the mask has its {self.budget:,} places in {parts} of {len(weights)} weights, from {len(shown)} rows")

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the folder's indices; their number may differ."""
        for number, change in enumerate(self.all_changes()):
            stored = tensors.get(f"changes.{number}.at")
            if stored is not None and stored.shape != change.at.shape:
                change.take(stored)

    @torch.no_grad()
    def merge(self, model: PreTrainedModel) -> None:
        """Add the changes to the model's weights."""
        for change in self.all_changes():
            weight = model.get_parameter(change.name)
            weight.copy_(change.changed(weight))


class Change(nn.Module):
    """The change of one weight: `at` (k,), flat indices in ascending order; `values` (k,), float32."""

    at: Tensor

    def __init__(self, owner: SparseChange, name: str, at: Tensor) -> None:
        super().__init__()
        self.name = name
        self.attribute = name.rpartition(".")[2]
        self._owner = (owner,)  # in a tuple, so that it is not a submodule
        self._held: list[Any] = []
        self.register_buffer("at", at)
        self.values = nn.Parameter(torch.zeros(len(at)))

    @property
    def idle(self) -> bool:
        """Whether the weight does not change."""
        return not len(self.at)

    def take(self, at: Tensor) -> None:
        """Take other indices, with values of zero."""
        self.at = at.to(self.values.device)
        self.values = nn.Parameter(torch.zeros(len(at), device=self.values.device))

    def changed(self, weight: Tensor) -> Tensor:
        """Return the weight with its change, in the weight's shape and dtype."""
        flat = weight.detach().reshape(-1)
        return flat.index_add(0, self.at, self.values.to(flat.dtype)).view_as(weight)

    def put_in(self, module: nn.Module, args: Any) -> None:
        """Replace the module's weight by the changed one before the module runs."""
        own = module._parameters[self.attribute]
        self._held.append(own)
        if self._owner[0].on and own is not None and not self.idle:
            module._parameters[self.attribute] = self.changed(own)  # type: ignore[assignment]

    def take_out(self, module: nn.Module, args: Any, output: Any) -> None:
        """Put the module's own weight back after the module has run or failed."""
        module._parameters[self.attribute] = self._held.pop()


def weights_in_use(model: PreTrainedModel) -> dict[str, list[str]]:
    """Map the name of each parameter that a forward pass uses to the names of the modules that own it. A tied matrix
    has two owners.
    """
    ran: set[nn.Module] = set()
    owning = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    with ExitStack() as hooks:
        for module in owning:
            hooks.enter_context(module.register_forward_pre_hook(lambda module, args: ran.add(module)))
        two_tokens(model)
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, [])
            if module in ran:
                owners[parameter].append(name)
    return {name: owners[p] for name, p in model.named_parameters() if owners[p]}


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return flat indices, ascending, of the `count` largest scores over all tensors together. Of equal scores the
    first ones are taken.
    """
    best = [score.topk(min(count, score.numel())).values for score in scores.values()]
    bar = torch.cat([each.flatten() for each in best]).topk(count).values[-1]
    chosen = {name: (score > bar).nonzero()[:, 0] for name, score in scores.items()}
    left = count - sum(len(each) for each in chosen.values())
    for name, score in scores.items():
        equal = (score == bar).nonzero()[:left, 0]
        chosen[name] = torch.cat([chosen[name], equal]).sort().values
        left -= len(equal)
    return chosen
