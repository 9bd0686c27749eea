"""The fine-tuning editors: train one output matrix on the edits' answers, with gradients instead of a closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from posttrain.editing.editors._above import Above
from posttrain.editing.editors._answers import Asked
from posttrain.editing.editors._base import EditContext, EditorConfig, Figures
from posttrain.editing.edits import Edit, Row
from posttrain.editing.sites import Site
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.models.added import frozen

__all__ = ["TunedConfig", "finite", "moving", "one_site", "tune_each", "write_change"]


class TunedConfig(EditorConfig):
    """What every fine-tuning editor has."""

    needs_subject = False

    learning_rate: float = Field(5e-4, gt=0)
    """Learning rate of Adam, without weight decay."""
    steps: int = Field(25, ge=1)
    """Steps for an edit, at most."""
    stop_loss: float = Field(1e-2, ge=0)
    """Nats per token below which an edit is learned."""

    @property
    def most_steps(self) -> int:
        return self.steps


@contextmanager
def moving(context: EditContext, site: Site) -> Iterator[nn.Parameter]:
    """Within this block the model has a float32 copy of the matrix that takes gradients; nothing else does. The block
    may set its numbers. Afterwards the model has its own matrix again, and its parameters move as before.
    """
    model = context.sites.model
    own = context.sites.weight(site)
    module = context.sites.module(site)
    precise = torch.promote_types(own.dtype, torch.float32)
    master = nn.Parameter(own.detach().to(precise, copy=True))

    def used(_: nn.Module, args: Any) -> None:
        module._parameters["weight"] = master.to(own.dtype) if precise != own.dtype else master  # type: ignore[assignment]

    handle = module.register_forward_pre_hook(used)
    try:
        with frozen(model):
            yield master
    finally:
        handle.remove()
        module._parameters["weight"] = own


def write_change(context: EditContext, site: Site, master: Tensor, edits: Sequence[int]) -> float:
    """Write what training has changed in the matrix, and return its norm over the matrix's norm. edits: the indices of
    the edits that it belongs to.
    """
    own = site.oriented(context.sites.weight(site).detach())
    change = site.oriented(master.detach()).double() - own.double()
    share = float(change.norm() / own.double().norm())  # before `own` itself is written
    context.write(site, change, edits)
    return share


def one_site(context: EditContext, config: EditorConfig) -> Site:
    """Return the only site of an editor that trains one matrix. Raise ConfigError if several layers are given."""
    places = context.places(config)
    if len(places) > 1:
        cause = f"{config.kind} trains one matrix, and {len(places)} layers are given"
        raise ConfigError(Problem("layers", cause, "give one layer"))
    return places[0]


def tune_each(
    config: TunedConfig,
    context: EditContext,
    edits: Sequence[Edit],
    form: Callable[[Sequence[Row], torch.device], Asked],
    hold: Callable[[Tensor, Tensor], None] = lambda weight, start: None,
) -> list[Figures]:
    """Train on one edit after another until each is learned: the usual course of fine-tuning editors.

    form: how the answer is asked; hold: called after each step with the matrix and what it was, to hold it near.
    """
    site = one_site(context, config)
    model: Any = context.sites.model
    figures: list[Figures] = []
    for number, (edit, rows) in enumerate(zip(edits, context.rows(config, edits), strict=True)):
        with moving(context, site) as weight:
            start = weight.detach().clone()
            optimizer = torch.optim.Adam([weight], lr=config.learning_rate)
            asked, step, nats = form(rows, model.device), 0, float("inf")
            read = Above(context, site)
            for step in range(config.steps + 1):
                with torch.enable_grad():
                    loss = read.nats(asked).mean()
                nats = finite(loss, edit)
                if nats < config.stop_loss or step == config.steps:
                    break
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    hold(weight, start)
        share = write_change(context, site, weight, [number])
        figures.append(Figures(nats=nats, steps=step, share=share))
    return figures


def finite(loss: Tensor, edit: Edit) -> float:
    """Return a loss as a number. Raise PosttrainError, which names the edit, if it is not finite."""
    value = float(loss.detach())
    if value != value or value == float("inf"):
        mend = "take a smaller learning rate, or the model in float32"
        raise PosttrainError(Problem(edit.location, "its loss is not finite", mend))
    return value
