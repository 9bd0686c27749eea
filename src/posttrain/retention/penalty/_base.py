"""Define what penalties share.

A parameter penalty is a function of the weights alone. Its gradient is added once per optimiser step, after the task's
gradients are complete and before they are clipped, so that neither accumulation nor the number of processes changes its
strength. A logit penalty compares outputs with those of the model before training and is a part of each micro batch's
loss. The registered function of a parameter penalty makes a `ParameterPenalty`; that of a logit penalty is the pure
function itself.

With AdamW the gradients are *coupled*: the penalty's gradient goes through the same running means and the same division
as the task's gradient, so `strength` weights the two gradients against each other and is not a decay rate. (Weight
decay is decoupled.)

The effect of a strength depends on model, loss and learning rate. The length of Adam's steps is the learning rate, for
gradients of any size, so a lambda that stops a training at 5e-4 has no visible effect at 1e-5. A *relative* strength s
(`scale: relative`, the default) fixes lambda by Adam's first step, d = -eta sign(g) with the peak learning rate eta and
the loss's gradient g. Along this step the loss falls by `push`. After the step lambda P rises along it by `pull`:

    push = sum_i |g_i| eta,    pull = lambda sum_i |P'_i(d)| eta

lambda is chosen once, at the first step, so that pull = s push:

    lambda = s sum_i |g_i| / sum_{i: g_i != 0} |P'_i|

with P'_i = F_i eta for `ewc` and `online_ewc`, 2 Omega_i eta for `mas` and `si`, eta for `l2_sp` (all are springs,
stretched by one step), and sign(theta_i), theta_i for `l1` and `l2`, which pull from the start. So s = 0.1 means: after
one step the spring pulls with a tenth of the strength with which the loss pushed, and after ten steps in the same
direction with the same strength. The units of the loss, of importances, of the weights and of the learning rate all
cancel; the number of steps does not. With `scale: absolute` strength is lambda itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from posttrain.config.base import Config
from posttrain.data.chat import Encoded
from posttrain.models.load import LoadedModel
from posttrain.models.memory import LARGE_MODEL, mapped
from posttrain.retention.selection import ReplayContext

Trainable = Mapping[str, nn.Parameter]
"""The parameters that are trained, by name."""


PART = 1 << 17
"""Number of weights that a CPU handles together: four tensors of this size are 2 MiB in float32."""
TOO_STRONG = 10.0
"""Maximum relative strength. Above it nothing is learned from the first step on, and an absolute one was meant."""


class PenaltyConfig(Config):
    """The settings that every penalty has."""

    acts_on: ClassVar[Literal["parameters", "logits"]] = "parameters"
    """Whether it is a function of the weights, or of the model's outputs."""

    kind: str
    """Which penalty: see `posttrain list penalties`."""

    def files(self) -> list[str]:
        """Return the paths of the files that this penalty reads."""
        return []


class StrengthConfig(PenaltyConfig):
    """The settings of penalties on parameters: their strength, and its unit."""

    strength: float = Field(default=1.0, gt=0)
    """How strong it is, in the unit of `scale`."""
    scale: Literal["relative", "absolute"] = "relative"
    """`relative`: strength is the share of the loss's own push that the penalty's pull has after one step; the number
    that is multiplied with the formula follows from it at the first step, and is printed and kept. `absolute`: strength
    is that number, which another model, learning rate or loss wants another one of."""

    @model_validator(mode="after")
    def _in_its_unit(self) -> Self:
        if self.scale == "absolute" and "strength" not in self.model_fields_set:
            raise ValueError("scale: absolute needs a strength; the default is a relative one")
        if self.scale == "relative" and self.strength > TOO_STRONG:
            raise ValueError(
                f"a relative strength of {self.strength:g} lets nothing be learned: give {TOO_STRONG:g} at most, "
                "or add scale: absolute, which is what strengths were before"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class PenaltyContext(ReplayContext):
    """The parts that a penalty may use before the first step. The respondent answers as the model before training.

    loaded: the tuned model with its tokenizer (an adapter, if there is one, is in it and has no effect yet); trainable:
    the parameters that are trained; earlier: folder of the run of the task before, or the file that
    `ParameterPenalty.save` has written there, None for a first task; rows: the new rows of this task if they are rows
    of tokens, for measurements at its end; fresh: names of parameters that no file contained, such as those of a new
    head; untouched: during this context the respondent answers as if the tuner had added nothing to the model (a new
    prefix would change its answers from the start); held: parameters of the same model before training, which the
    caller keeps and never changes.
    """

    loaded: LoadedModel
    trainable: Trainable
    earlier: Path | None = None
    batch_tokens: int = 4096
    rows: Sequence[Encoded] = ()
    fresh: frozenset[str] = frozenset()
    untouched: Callable[[], AbstractContextManager[None]] = nullcontext
    held: Mapping[str, Tensor] = field(default_factory=dict)


def moved_to(tensor: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Move a tensor to the device of `like`, convert it to its dtype (or `dtype`), and cut it into the same shards."""
    tensor = tensor.to(device=like.device, dtype=dtype or like.dtype)
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, joined from its shards, without gradient. With shards, every process must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total(parts: Sequence[Tensor]) -> float:
    """Return the sum of scalars from any devices."""
    if not parts:
        return 0.0
    found = [whole(part) for part in parts]
    return float(torch.stack([part.to(found[0].device, torch.float32) for part in found]).double().sum())


def copies(trainable: Trainable, held: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Copy the parameters. held: tensors that are never changed; if one equals its parameter, it is used uncopied."""
    return {name: _as_it_is(parameter, (held or {}).get(name)) for name, parameter in trainable.items()}


def _as_it_is(parameter: Tensor, held: Tensor | None) -> Tensor:
    if held is None or isinstance(parameter, DTensor) or held.data_ptr() == parameter.data_ptr():
        return parameter.detach().clone()
    alike = (held.shape, held.dtype, held.device) == (parameter.shape, parameter.dtype, parameter.device)
    return held.detach() if alike and torch.equal(held, parameter) else parameter.detach().clone()


def add_pull(parameter: nn.Parameter, center: Tensor | None, scale: float, weight: Tensor | None = None) -> Tensor:
    """Add `scale` x weight x (theta - center) to `.grad`; return the sum of weight x (theta - center)^2, a scalar.

    center: None for zero; weight: as precise as the parameter or less, None for one. A CPU works on parts that fit into
    the processor's cache; on a whole model at once it would wait for memory.
    """
    theta = parameter.detach()
    tensors = [t for t in (theta, center, weight, parameter.grad) if t is not None]
    cut = all(t.device.type == "cpu" and not isinstance(t, DTensor) and t.is_contiguous() for t in tensors)
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(theta)
    rows = [None if t is None else t.view(-1) if cut else t for t in (theta, center, weight, parameter.grad)]
    size = theta.numel()
    found = []
    for start in range(0, size, PART) if cut else [None]:
        here, there, share, gradient = (t if t is None or start is None else t[start : start + PART] for t in rows)
        assert here is not None
        assert gradient is not None
        away = here if there is None else here - there
        pull = away if share is None else share.to(away.dtype) * away
        found.append((pull * away).sum())
        gradient.add_(pull.to(gradient.dtype), alpha=scale)
    return torch.stack([whole(part) for part in found]).sum() if found else theta.new_zeros(())


def files_of(trainable: Trainable) -> list[tuple[int, int]]:
    """Return files from which tensors of a large model are mapped, for `set_aside`: a step reads each tensor once."""
    return mapped() if sum(p.numel() for p in trainable.values()) >= LARGE_MODEL else []


def moving(parameter: nn.Parameter) -> Tensor | None:
    """Return which entries the gradient in `.grad` moves, as bool; None if there is no gradient."""
    return None if parameter.grad is None else parameter.grad.detach() != 0


class ParameterPenalty(ABC):
    """A penalty on the weights, ready to be added. Its tensors have the devices and shards of the parameters."""

    remembers: ClassVar[bool] = False
    """Whether it writes a file for the next task (`save`)."""
    strength: float
    """lambda, the factor of the formula. For a relative strength it is known only from the first step on."""

    @abstractmethod
    def slope(self, trainable: Trainable, step: float) -> float:
        """Return the sum of |P'_i| for lambda = 1, over the parameters that the gradients in `.grad` move. Each
        parameter is assumed to be `step` away from the point where the penalty is zero. Return 0 if nothing is held.
        """

    @abstractmethod
    def add_gradients(self, trainable: Trainable, scale: float = 1.0) -> float:
        """Add `scale` x the penalty's gradient to `.grad` (made if it is None); return its value in nats."""

    def observe(self, trainable: Trainable, scale: float = 1.0) -> None:  # noqa: B027  # only SI needs it
        """Read the complete gradient of the task, `.grad` x `scale`, before any penalty is added to it."""

    def stepped(self, trainable: Trainable) -> None:  # noqa: B027
        """Update what depends on the weights, after the optimiser has changed them."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs, except those that are made again before the first step."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore the tensors of `state`."""

    def save(self, trainable: Trainable, path: Path) -> None:  # noqa: B027  # stateless penalties write nothing
        """Write the file for the penalty of the next task (`PenaltyContext.earlier`), at the end of a task."""


class Memoryless(ParameterPenalty):
    """strength x the sum of `value` over all weights. `slope` is the derivative of `value`; both are elementwise."""

    def __init__(self, strength: float, value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> None:
        self.strength, self.value, self.slope_of = strength, value, slope

    def slope(self, trainable: Trainable, step: float) -> float:
        """Return the sum of absolute slopes at the present weights that move: these penalties act from the start."""
        moved = [(p, m) for p in trainable.values() if (m := moving(p)) is not None]
        return total([(self.slope_of(p.detach()).abs() * m).sum() for p, m in moved])

    def add_gradients(self, trainable: Trainable, scale: float = 1.0) -> float:
        """Add the slope at each weight to `.grad`."""
        parts = []
        for parameter in trainable.values():
            theta = parameter.detach()
            slope, factor = self.slope_of(theta), self.strength * scale
            parts.append(self.value(theta).sum())
            if parameter.grad is None:
                parameter.grad = slope * factor
            else:
                parameter.grad.add_(slope.to(parameter.grad.dtype), alpha=factor)
        return self.strength * total(parts)
