"""Keep importances and centres of earlier tasks: the file that a penalty writes for the next task, and its gradients.

Penalties of several tasks, sum over k of F_k (theta - theta_k)^2, are kept as one: with F = sum F_k and the centre c =
(sum F_k theta_k) / F they equal F (theta - c)^2 + rest, and rest is a constant. Therefore neither file nor memory grows
with the number of tasks, and the gradients are those of the sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.errors import ConfigError, MissingError, Problem
from posttrain.models.disk import whole_file
from posttrain.models.memory import set_aside
from posttrain.retention.penalty._base import (
    ParameterPenalty,
    PenaltyContext,
    StrengthConfig,
    Trainable,
    add_pull,
    files_of,
    moved_to,
    moving,
    total,
    whole,
)

PENALTIES = "penalties"
"""Folder inside the folder of a run, with the file `<kind>.safetensors` of each penalty for the next task."""
FAR = 0.01
"""Maximum distance of a tensor from the end of the earlier task, as a share of its norm. A larger distance means that
it is another tensor. A smaller one can come from saving in a lower precision.
"""


class MemoryConfig(StrengthConfig):
    """The settings of penalties that remember earlier tasks."""

    earlier: str | None = None
    """What an earlier run has left: its output folder, or the file in its `penalties/`. In `stages:` of a study the
    stage before is found by itself."""

    def files(self) -> list[str]:
        """Return the path of the earlier run."""
        return [self.earlier] if self.earlier else []


class Kept(NamedTuple):
    """The state of a penalty after some tasks.

    importance and center: by name of the parameter; end: the parameters at the end of the last task, None if they equal
    the center; rest: the constant; tasks: number of tasks that are added up here.
    """

    importance: dict[str, Tensor]
    center: dict[str, Tensor]
    end: dict[str, Tensor] | None = None
    rest: float = 0.0
    tasks: int = 1


def joined(one: Kept, other: Kept) -> Kept:
    """Return the sum of two penalties as one penalty. If both importances are 0, the centre is that of `other`."""
    importance, center, rest = {}, {}, one.rest + other.rest
    for name, second in other.importance.items():
        first, a, b = one.importance[name].to(second), one.center[name].to(second), other.center[name].to(second)
        total = first + second
        share = torch.where(total > 0, first / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
        importance[name] = total
        center[name] = b + share * (a - b)
        rest += float((share * second * (a - b).square()).double().sum())
    return Kept(importance, center, other.end, rest, one.tasks + other.tasks)


def leave(path: Path, kind: str, kept: Kept) -> None:
    """Write the state of a penalty into a file for the next task."""
    parts = {"importance": kept.importance, "center": kept.center, "end": kept.end or {}}
    tensors = {
        f"{part}/{name}": whole(t).cpu().contiguous() for part, named in parts.items() for name, t in named.items()
    }
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"penalty": kind, "tasks": str(kept.tasks), "rest": repr(kept.rest)})


def earlier_of(config: MemoryConfig, context: PenaltyContext) -> Path | None:
    """Return the file of the earlier task; None for a first task. Raise MissingError if the file is missing."""
    path = context.earlier
    if path is None and config.earlier is not None:
        path = context.base / Path(config.earlier).expanduser()
    if path is None:
        return None
    path = path / PENALTIES / f"{config.kind}.safetensors" if path.is_dir() else path
    if not path.is_file():
        mend = f"train the earlier task with penalty {config.kind}, too, and an output folder"
        raise MissingError(Problem(str(path), f"nothing was left here for {config.kind} by an earlier task", mend))
    return path


def take_up(path: Path, kind: str, trainable: Trainable) -> Kept:
    """Read the file and check that its parameters are the trained ones, with their present values. Raise ConfigError
    with every problem.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {error}", "train the earlier task again")) from error
    if notes.get("penalty") != kind:
        wrote = notes.get("penalty", "something else")
        raise ConfigError(Problem(str(path), f"was written by {wrote}, not by {kind}", f"give the file of {kind}"))

    def part(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{name}/"): t for k, t in tensors.items() if k.startswith(f"{name}/")}

    kept = Kept(part("importance"), part("center"), part("end") or None, float(notes["rest"]), int(notes["tasks"]))
    _check(path, kept, trainable)
    return kept._replace(end=None)


def _check(path: Path, kept: Kept, trainable: Trainable) -> None:
    mend = "use the tuner, its settings and the model of the earlier task"
    problems = []
    lacking = [name for name in trainable if name not in kept.importance]
    strange = [name for name in kept.importance if name not in trainable]
    for names, cause in ((lacking, "lacks parameters that move now"), (strange, "has parameters that do not move now")):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            problems.append(Problem(str(path), f"{cause}: {shown}", mend))
    for name in trainable.keys() & kept.importance.keys():
        then, now = tuple(kept.importance[name].shape), tuple(trainable[name].shape)
        if then != now:
            problems.append(Problem(str(path), f"{name} had the shape {then} and has {now} now", mend))
    if problems:
        raise ConfigError(*problems)
    end = kept.end or kept.center
    for name, parameter in trainable.items():
        ended = end[name].double()
        away, size = float((whole(parameter).cpu().double() - ended).norm()), float(ended.norm())
        if away > FAR * size:
            cause = (
                f"the earlier task did not end where this one starts: |{name}| was {size:.3g} and is {away:.3g} away"
            )
            mend = "start from the model (or take up the adapter) that the earlier task has saved"
            raise ConfigError(Problem(str(path), cause, mend))


class Quadratic(ParameterPenalty):
    """strength x unit x (sum of importance x (theta - center)^2 + rest): a spring for each parameter. kept: None if
    nothing is held yet; unit: 1/2 if the formula has lambda / 2.
    """

    remembers: ClassVar[bool] = True

    def __init__(self, strength: float, kept: Kept | None, unit: float = 1.0) -> None:
        self.strength = strength
        self.unit = unit
        self.kept = kept

    def slope(self, trainable: Trainable, step: float) -> float:
        """Return the sum of 2 unit x importance x step."""
        sums = []
        for name, parameter in trainable.items():
            moved = moving(parameter)
            if self.kept is not None and moved is not None:
                importance = moved_to(self.kept.importance[name], parameter)
                sums.append((importance * moved).sum())
        return 2 * self.unit * step * total(sums)

    def add_gradients(self, trainable: Trainable, scale: float = 1.0) -> float:
        """Add 2 strength x unit x importance x (theta - center)."""
        if self.kept is None:
            return 0.0
        factor = self.strength * self.unit
        importances, centers, values = self.kept.importance, self.kept.center, []
        files = files_of(trainable)
        for name, parameter in trainable.items():
            importances[name] = moved_to(importances[name], parameter, importances[name].dtype)  # keeps its precision
            centers[name] = moved_to(centers[name], parameter)
            values.append(add_pull(parameter, centers[name], 2 * factor * scale, importances[name]))
            set_aside((centers[name], importances[name]), files)
        return factor * (total(values) + self.kept.rest)
