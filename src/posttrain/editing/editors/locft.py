"""LocFT: fine-tune one matrix on all edits in shuffled epochs, the baseline to beat. arXiv:2509.22072 (ICLR 2026).

That fine-tuning edits badly was an artefact of learning one edit to its end before the next. Here all edits of a batch
are learned together: epochs of shuffled mini-batches, Adam without weight decay, one output matrix, the end of the turn
learned with the answer. A mini-batch that is learned (`stop_loss`) is passed over, and training ends when the mean of
an epoch is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.editing.editors._above import Above
from posttrain.editing.editors._answers import answers_of
from posttrain.editing.editors._base import EditContext, Figures
from posttrain.editing.editors._tuned import TunedConfig, finite, moving, one_site, write_change
from posttrain.editing.edits import Edit
from posttrain.models.meter import Meter
from posttrain.registry import register

__all__ = ["LocftConfig", "TogetherConfig", "locft", "tune_together"]


class TogetherConfig(TunedConfig):
    """What editors have that train one matrix on all edits together."""

    steps: int = Field(100, ge=1)
    """Epochs, at most; 25 in the paper, where an epoch has tens of mini-batches."""
    rows: int = Field(100, ge=1)
    """Rows of a mini-batch."""

    def auto_layers(self, count: int) -> tuple[int, ...]:
        """Return the layer at 69 % of the depth, 22 of 32 as in the paper for Llama 3."""
        return (min(round(0.69 * count), count - 1),)


class LocftConfig(TogetherConfig):
    """Fine-tune one matrix on all edits together."""

    kind: Literal["locft"] = "locft"
    """LocFT."""


def tune_together(
    config: TogetherConfig, context: EditContext, edits: Sequence[Edit], free: Callable[[Tensor], Tensor] | None = None
) -> list[Figures]:
    """Train on all edits together. free: returns the part of a gradient, or of the change so far, that may stay; both
    are held to it in every step, as Adam's steps leave the space of their gradients.
    """
    site = one_site(context, config)
    model: Any = context.sites.model
    laid = [(e, row) for e, rows in enumerate(context.rows(config, edits)) for row in rows]
    draw = random.Random(f"locft {context.seed}")
    nats = [float("inf")] * len(laid)
    epochs = 0
    with moving(context, site) as weight, Meter("training on edits", config.steps, "epochs") as meter:
        start = weight.detach().clone()
        optimizer = torch.optim.Adam([weight], lr=config.learning_rate)
        read = Above(context, site)
        for epochs in range(1, config.steps + 1):  # noqa: B007
            order = draw.sample(range(len(laid)), len(laid))
            for first in range(0, len(order), config.rows):
                batch = order[first : first + config.rows]
                with torch.enable_grad():
                    losses = read.nats(answers_of([laid[i][1] for i in batch], model.device))
                    loss = losses.mean()
                for i, one in zip(batch, losses.detach(), strict=True):
                    nats[i] = finite(one, edits[laid[i][0]])
                if float(loss.detach()) < config.stop_loss:
                    continue
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                if free is not None and weight.grad is not None:
                    weight.grad = site.oriented(free(site.oriented(weight.grad))).contiguous()
                optimizer.step()
                if free is not None:
                    change = free(site.oriented(weight.detach() - start))
                    weight.data.copy_(start + site.oriented(change))
            meter.more(1)
            if sum(nats) / len(nats) < config.stop_loss:
                break
    share = write_change(context, site, weight, range(len(edits)))
    own = [[nats[i] for i, (e, _) in enumerate(laid) if e == number] for number in range(len(edits))]
    return [Figures(nats=sum(one) / len(one), steps=epochs, share=share) for one in own]


@register("editor", "locft", config=LocftConfig, paper="arXiv:2509.22072")
def locft(config: LocftConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Train on all edits together."""
    return tune_together(config, context, edits)
