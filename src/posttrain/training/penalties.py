"""Handle the penalties of a run: make them, add them to the gradients of every step, keep them in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain import registry
from posttrain.errors import ConfigError, Problem
from posttrain.retention.penalty._base import (
    ParameterPenalty,
    PenaltyConfig,
    PenaltyContext,
    StrengthConfig,
    Trainable,
    total,
)
from posttrain.retention.penalty._kept import PENALTIES

__all__ = ["Penalties", "Term", "make_penalties", "terms_of"]

STATE = "penalties.safetensors"
"""File in a checkpoint: the state of the penalties."""
CHOSEN = "chosen"
"""Prefix of the names in that file for the strengths that the first step has fixed."""


class Term(NamedTuple):
    """A loss on logits. `function(logits, base_logits, targets, old)` returns nats per row, (B,)."""

    kind: str
    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Penalties:
    """The parameter penalties of a run.

    names: the parameters of `model` that are trained; relative: relative strengths by kind of penalty. The first step
    turns them into absolute ones (`chosen`, see `retention/penalty/_base.py`), for steps as long as `learning_rate`.
    """

    parts: Mapping[str, ParameterPenalty]
    model: nn.Module
    names: Collection[str]
    relative: Mapping[str, float] = field(default_factory=dict)
    say: Callable[[str], None] = print
    chosen: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0

    @property
    def trainable(self) -> Trainable:
        """Return the trained parameters by name. They are looked up at each call, since FSDP2 replaces parameters by
        shards when training begins.
        """
        return {name: p for name, p in self.model.named_parameters() if name in self.names}

    def check(self, *, deepspeed: bool, sharded: bool, leaves: bool) -> None:
        """Raise ConfigError if penalties cannot reach gradients or whole parameters. sharded: whether FSDP cuts the
        parameters; leaves: whether there is an output folder, in which penalties save a state for the next task.
        """
        if self.parts and deepspeed:
            cause = "DeepSpeed keeps gradients to itself until it has stepped, so nothing can be added to them"
            raise ConfigError(Problem("penalty", cause, "use FSDP2 or DDP, or leave the penalty out"))
        remembering = [kind for kind, part in self.parts.items() if part.remembers]
        if remembering and sharded and leaves:
            cause = f"{remembering[0]} measures and saves whole parameters, which FSDP has cut into shards"
            raise ConfigError(Problem("penalty", cause, "use a single process, DDP, or l2_sp"))

    def add(self, loss_scale: float) -> dict[str, float]:
        """Add the gradient of every penalty to that of the task; return the values of the penalties in nats. The
        gradient of the task must be complete. It is `loss_scale` times too large.
        """
        if not self.parts:
            return {}
        trainable = self.trainable
        for part in self.parts.values():
            part.observe(trainable, 1.0 / loss_scale)
        self._choose(trainable, loss_scale)
        values = {}
        for kind, part in self.parts.items():
            waiting = kind in self.relative and kind not in self.chosen
            values[f"penalty_{kind}"] = 0.0 if waiting else part.add_gradients(trainable, loss_scale)
            if kind in self.chosen:
                values[f"strength_{kind}"] = self.chosen[kind]
        return values

    def _choose(self, trainable: Trainable, loss_scale: float) -> None:
        """Fix relative strengths at the first step that has a gradient, before any penalty is added to it."""
        waiting = [kind for kind in self.relative if kind not in self.chosen]
        if not waiting:
            return
        assert self.learning_rate > 0, "a relative strength is one of a step, whose length must be known"
        push = total([p.grad.detach().abs().sum() for p in trainable.values() if p.grad is not None]) / loss_scale
        for kind in waiting:
            pull = self.parts[kind].slope(trainable, self.learning_rate)
            if push > 0 and pull > 0:
                self.chosen[kind] = self.parts[kind].strength = self.relative[kind] * push / pull
                self.say(
                    f"{kind}: strength {self.relative[kind]:g} of the loss's push ({push:.4g} nats per unit of every "
                    f"weight) after one step of {self.learning_rate:g} is {self.chosen[kind]:.4g} in absolute terms"
                )

    def stepped(self) -> None:
        """Inform the penalties that the optimiser has updated the weights."""
        trainable = self.trainable if self.parts else {}
        for part in self.parts.values():
            part.stepped(trainable)

    def save_state(self, folder: Path) -> None:
        """Write the state of the penalties into a checkpoint folder."""
        state = {f"{kind}/{name}": t for kind, part in self.parts.items() for name, t in part.state().items()}
        state |= {f"{CHOSEN}/{kind}": torch.tensor(s, dtype=torch.float64) for kind, s in self.chosen.items()}
        if state:
            save_file({k: t.detach().cpu().contiguous() for k, t in state.items()}, folder / STATE)

    def load_state(self, folder: Path) -> None:
        """Read the state of the penalties from a checkpoint folder."""
        found = load_file(folder / STATE) if (folder / STATE).is_file() else {}
        for kind, part in self.parts.items():
            mine = {k.removeprefix(f"{kind}/"): t for k, t in found.items() if k.startswith(f"{kind}/")}
            part.load_state(mine)
            if f"{CHOSEN}/{kind}" in found:
                self.chosen[kind] = part.strength = float(found[f"{CHOSEN}/{kind}"])

    def save(self, folder: Path) -> None:
        """Write the states that the penalties keep for the next task into `folder/penalties`."""
        for kind, part in self.parts.items():
            (folder / PENALTIES).mkdir(exist_ok=True)
            part.save(self.trainable, folder / PENALTIES / f"{kind}.safetensors")


def terms_of(configs: Sequence[PenaltyConfig]) -> list[Term]:
    """Return the penalties that act on logits."""
    chosen = [c for c in configs if c.acts_on == "logits"]
    return [Term(c.kind, partial(registry.load("penalty", c.kind).function, config=c)) for c in chosen]


def make_penalties(configs: Sequence[PenaltyConfig], context: PenaltyContext) -> Penalties:
    """Make the penalties that act on parameters."""
    parts: dict[str, ParameterPenalty] = {}
    for config in configs:
        if config.acts_on == "parameters":
            with torch.random.fork_rng():
                parts[config.kind] = registry.load("penalty", config.kind).function(config, context)
    relative = {c.kind: c.strength for c in configs if isinstance(c, StrengthConfig) and c.scale == "relative"}
    return Penalties(parts, context.loaded.model, frozenset(context.trainable), relative, context.say)
