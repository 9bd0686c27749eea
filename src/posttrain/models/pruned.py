"""Diff pruning: a change of all weights that training makes sparse, and that is pruned to its final size at the end.

    w' = w + z v,   z = clip(s (zeta - gamma) + gamma, 0, 1),   s = sigmoid(log u - log(1 - u) + alpha),   u ~ U(0, 1)
    loss + l0 * mean of P(z > 0),   P(z > 0) = sigmoid(alpha - log(-gamma / zeta)),   gamma = -1.5, zeta = 1.5

Guo, Rush & Kim 2020, arXiv:2012.07463 (section 3.1; hard concrete gates of Louizos et al. 2017, arXiv:1712.01312). v is
zero and alpha is 5 at the start; in eval mode u = 1/2. After the last step the `share` of all weights with the largest
|z v| is kept (section 3.2). The paper's lambda is l0 divided by the number of weights. The penalty's gradient is added
once per optimiser step, together with the step's first gradient; gradient clipping includes it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.sparse import Change, SparseChange, largest

__all__ = ["GatedChange", "PrunedChange"]

LOW, HIGH = -1.5, 1.5
START = 5.0


class PrunedChange(SparseChange):
    """The changes of all weights, with gates until they are pruned. The settings are: share, l0, gate_rate (alpha = 5 +
    gate_rate x the value that the optimiser moves), seed, and pruned, which is set at the end.
    """

    kind: ClassVar[str] = "diff_pruning"
    looks_at_rows: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__(model, {"pruned": False, **settings})

    def change_of(self, name: str, at: Tensor, size: int) -> GatedChange:
        """Return a change with gates, or without gates if it is already pruned."""
        return GatedChange(self, name, at, size, gated=not self.settings["pruned"])

    def gated(self) -> list[GatedChange]:
        """Return the changes with gates: all of them, or none after pruning."""
        return [c for c in self.all_changes() if isinstance(c, GatedChange) and c.gates is not None]

    @torch.no_grad()
    def finish(self, say: Callable[[str], None]) -> None:
        """Keep the largest changes and remove the gates."""
        changes = self.gated()
        deltas = {change.name: change.delta() for change in changes}
        chosen = largest({name: delta.abs() for name, delta in deltas.items()}, self.budget)
        total = sum(delta.numel() for delta in deltas.values())
        unpruned = sum(int((delta != 0).sum()) for delta in deltas.values())
        norm, kept = (
            math.sqrt(sum(float(each.double().square().sum()) for each in tensors))
            for tensors in (deltas.values(), [deltas[name][at] for name, at in chosen.items()])
        )
        for change in changes:
            change.cut(chosen[change.name], deltas[change.name])
        self.settings["pruned"] = True
        say(
            f"{unpruned:,} of {total:,} changes are open at the end; the {self.budget:,} largest stay, with "
            f"{kept / max(norm, 1e-30):.0%} of the change's length"
        )


class GatedChange(Change):
    """The change of one weight of n numbers. Before pruning it has values v and gates (alpha - 5) / gate_rate, (n,)
    each. After pruning it has values (k,) at indices (k,), and `gates` is None.
    """

    def __init__(self, owner: PrunedChange, name: str, at: Tensor, size: int, *, gated: bool) -> None:
        super().__init__(owner, name, at)
        self.rate = float(owner.settings["gate_rate"])
        self.gates: nn.Parameter | None = None
        self._seen: Callable[[], Tensor | None] | None = None
        if gated:
            self.values = nn.Parameter(torch.zeros(size))
            self.gates = nn.Parameter(torch.zeros(size))
            # the penalty is a mean over all weights; their number is budget / share
            self.strength = float(owner.settings["l0"]) * owner.settings["share"] / owner.budget
            self.gates.register_post_accumulate_grad_hook(self._penalise)  # type: ignore[no-untyped-call]

    @property
    def idle(self) -> bool:
        """Whether the weight does not change."""
        return self.gates is None and super().idle

    def alpha(self) -> Tensor:
        """Return the log-odds of the gates, (n,)."""
        assert self.gates is not None
        return START + self.rate * self.gates

    def delta(self) -> Tensor:
        """Return z v, (n,). z is drawn in training; in eval mode u = 1/2."""
        logits = self.alpha()
        if self.training:
            # each module of a tied matrix draws its own z; both are unbiased
            u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + u.log() - (1 - u).log()
        return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0, 1) * self.values

    def changed(self, weight: Tensor) -> Tensor:
        """Return the weight with its change, in the weight's shape and dtype."""
        if self.gates is None:
            return super().changed(weight)
        return weight.detach() + self.delta().to(weight.dtype).view_as(weight)

    def _penalise(self, gates: Tensor) -> None:
        """Add the gradient of the penalty to the first gradient of a step, which is a new tensor."""
        assert gates.grad is not None
        if self._seen is not None and gates.grad is self._seen():
            return
        with torch.no_grad():
            opening = torch.sigmoid(self.alpha() - math.log(-LOW / HIGH))
            gates.grad += self.strength * self.rate * opening * (1 - opening)
        self._seen = weakref.ref(gates.grad)

    def cut(self, at: Tensor, delta: Tensor) -> None:
        """Become a sparse change at these indices."""
        self.gates = None
        self.take(at)
        self.values.copy_(delta[at])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the weak reference, which cannot be copied. A copy has seen no gradient."""
        return self.__dict__ | {"_seen": None}
