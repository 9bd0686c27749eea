"""UltraEdit: a few gradients per edit and as many linear solves; no subject, no search. arXiv:2505.14679 (TMLR 2026).

At each token t of an answer, a matrix W (D, d) reads the key h_t (d,), and the loss of the answer's tokens has the
gradient g_t (D,) with respect to what W writes. Both are normalised number by number, with the means and deviations of
all edits so far (lifelong normalisation), to h^ and g^. With H (n, d) and V (n, D) of the tokens of a batch:

    v_t = - lr s |h^_t|^2 / d  g^_t
    dW  = V^T H (H^T H + r I)^-1  =  V^T (H H^T + r I)^-1 H

The keys of the solve are not normalised. The paper's lr (1e-6) is that of lr s / d here, so it means another step for
each width and model; its r is 1 whatever the length of keys. Here lr is the change of the output as a share of the
outputs' root mean square s, divided among the layers and the steps, and r is a multiple of the mean |h_t|^2.

All gradients are taken before anything is written. The paper chooses matrices for each model and data set: the output
matrices of layers 29 and 30 of 32 for Mistral 7B, 18 to 26 of 28 for GPT-J, 30 to 38 of 40 for Phi-4, gate and up
projections for Llama 3 and Qwen 2.5. Here output matrices are edited, from 75 to 97 % of the depth. The published code
shares the statistics among all matrices of a shape, adds the update in half precision and loses the last part of a
batch (September 2026); here each matrix has its own, everything is solved in float64, and no token is left out. A prior
(`PRIOR`) makes the first few tokens count: by themselves they have no deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from posttrain.editing.editors._answers import answers_of, nats_of
from posttrain.editing.editors._base import EditContext, EditorConfig, Figures
from posttrain.editing.editors._tuned import finite
from posttrain.editing.edits import Edit, Row
from posttrain.editing.reading import batches
from posttrain.editing.sites import Site
from posttrain.models.edit_delta import LowRank
from posttrain.models.kfac import flowing
from posttrain.registry import register

__all__ = ["Running", "UltraeditConfig", "output_shift", "ridge_shift", "ultraedit"]

PRIOR = 1.0
"""Weight, in tokens, of the prior of the running statistics."""
BATCH_TOKENS = 2048
"""Largest number of padded tokens in a pass."""


class UltraeditConfig(EditorConfig):
    """A few gradients per edit and as many linear solves."""

    needs_subject = False

    kind: Literal["ultraedit"] = "ultraedit"
    """UltraEdit."""
    learning_rate: float = Field(4.0, gt=0)
    """By how much the edited layers together move their outputs at a usual token of an answer, over all steps, as a
    multiple of the outputs' root mean square."""
    ridge: float = Field(1.0, gt=0)
    """r over the mean squared length of the keys: a larger one spares other keys more and writes less."""
    steps: int = Field(4, ge=1)
    """How often gradients are taken and a share of the learning rate is written; once in the paper, where what is
    enough for one edit is too much for twenty."""

    def auto_layers(self, count: int) -> tuple[int, ...]:
        """Return the layers between 75 and 97 % of the depth: 24 to 30 of 32, 30 to 38 of 40."""
        first = min(round(0.75 * count), count - 1)
        return tuple(range(first, max(round(0.97 * count), first + 1)))

    @property
    def most_steps(self) -> int:
        return self.steps


class Running:
    """The mean and variance of vectors (d,), number by number, over all that it has seen.

    To begin with there are `PRIOR` vectors of mean 0, each number with the mean square of the numbers seen. So the
    variance is never 0, and after many vectors it is the usual one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def update(self, vectors: Tensor) -> None:
        """Take vectors (n, d) in: Chan's update of the mean and the sum of squared deviations."""
        seen, more = vectors.double(), len(vectors)
        total = self.count + more
        apart = seen.mean(0) - self.mean.to(seen)
        own = (seen - seen.mean(0)).square().sum(0)
        self.squares = self.squares.to(seen) + own + apart.square() * (self.count * more / total)
        self.mean = self.mean.to(seen) + apart * (more / total)
        self.count = total

    def normalised(self, vectors: Tensor) -> Tensor:
        """Return vectors (n, d) less the mean, over the deviation."""
        usual = (self.squares / max(self.count, 1) + self.mean.square()).mean()  # the mean square of a number
        weight = self.count + PRIOR
        mean = self.mean * (self.count / weight)
        squares = self.squares + PRIOR * usual + self.mean.square() * (self.count * PRIOR / weight)
        return (vectors.double() - mean) / (squares / weight).sqrt().clamp_min(1e-150)


class Statistics(NamedTuple):
    """What is known of one matrix over all edits: keys, gradients, and the mean square of outputs."""

    keys: Running
    gradients: Running
    outputs: Running

    @classmethod
    def of(cls, kept: Mapping[str, Tensor], layer: int) -> Statistics:
        """Return what is kept of a layer; of a new one, nothing has been seen."""
        made = cls(Running(), Running(), Running())
        for name, running in made._asdict().items():
            if f"ultraedit.{layer}.{name}.count" in kept:
                running.count = int(kept[f"ultraedit.{layer}.{name}.count"])
                running.mean = kept[f"ultraedit.{layer}.{name}.mean"]
                running.squares = kept[f"ultraedit.{layer}.{name}.squares"]
        return made

    def keep(self, kept: dict[str, Tensor], layer: int) -> None:
        """Keep what is known of a layer."""
        for name, running in self._asdict().items():
            kept[f"ultraedit.{layer}.{name}.count"] = torch.tensor(running.count)
            kept[f"ultraedit.{layer}.{name}.mean"] = running.mean
            kept[f"ultraedit.{layer}.{name}.squares"] = running.squares


class Signals(NamedTuple):
    """What was read at the tokens of answers: keys (n, d), gradients (n, D), outputs (n, D), in float64."""

    keys: Tensor
    gradients: Tensor
    outputs: Tensor


def output_shift(keys: Tensor, gradients: Tensor, rate: float) -> Tensor:
    """Return by how much the outputs shall move, V (n, D).

    keys: normalised, h^ (n, d); gradients: normalised, g^ (n, D); rate: lr s.
    """
    return -rate * keys.square().mean(1, keepdim=True) * gradients


def ridge_shift(keys: Tensor, shift: Tensor, ridge: float) -> LowRank:
    """Return V^T H (H^T H + r I)^-1 as a change with one column for each token. keys: H (n, d); shift: V (n, D)."""
    few = len(keys) <= keys.shape[1]
    system = keys @ keys.T if few else keys.T @ keys
    system.diagonal().add_(ridge)
    right = torch.linalg.solve(system, keys) if few else torch.linalg.solve(system, keys.T).T
    return LowRank(shift.T, right)


def _signals(
    context: EditContext, places: Sequence[Site], edits: Sequence[Edit], rows: Sequence[Sequence[Row]]
) -> tuple[dict[int, Signals], list[int]]:
    """Return the signals by layer, and the edit that each token belongs to. Every token's loss counts alike."""
    model = context.sites.model
    flat = [(e, row) for e, own in enumerate(rows) for row in own]
    parts: dict[int, list[Signals]] = {site.layer: [] for site in places}
    owners: list[int] = []
    with flowing(model, [site.name for site in places]) as flows:
        for group in batches([len(row.ids) for _, row in flat], BATCH_TOKENS):
            asked = answers_of([flat[i][1] for i in group], model.device)
            with torch.enable_grad():
                nats = nats_of(model, asked)
                loss = (nats * asked.owner.bincount(minlength=len(nats))).sum()
            for i, own in zip(group, nats, strict=True):
                finite(own, edits[flat[i][0]])
            seen = [flows[site.name] for site in places]
            found = torch.autograd.grad(loss, [flow.outputs for flow in seen])
            owners += [flat[group[o]][0] for o in asked.owner.tolist()]
            for site, flow, gradients in zip(places, seen, found, strict=True):
                three = (flow.inputs, gradients, flow.outputs.detach())
                at = (t.reshape(asked.ids.numel(), t.shape[-1])[asked.places].double() for t in three)
                parts[site.layer].append(Signals(*at))
    return {layer: Signals(*map(torch.cat, zip(*own, strict=True))) for layer, own in parts.items()}, owners


@torch.no_grad()
def _nats(context: EditContext, rows: Sequence[Sequence[Row]]) -> list[float]:
    """Return each edit's loss per token, the mean over its rows."""
    model = context.sites.model
    flat = [(e, row) for e, own in enumerate(rows) for row in own]
    nats = [0.0] * len(rows)
    for group in batches([len(row.ids) for _, row in flat], 4 * BATCH_TOKENS):
        for i, one in zip(group, nats_of(model, answers_of([flat[i][1] for i in group], model.device)), strict=True):
            nats[flat[i][0]] += float(one) / len(rows[flat[i][0]])
    return nats


@register("editor", "ultraedit", config=UltraeditConfig, paper="arXiv:2505.14679")
def ultraedit(config: UltraeditConfig, context: EditContext, edits: Sequence[Edit]) -> list[Figures]:
    """Write the edits together, from a gradient of each in every step."""
    places = context.places(config)
    rows = context.rows(config, edits)
    shares = [0.0] * len(edits)
    for _ in range(config.steps):
        signals, owners = _signals(context, places, edits, rows)
        for site in places:
            keys, gradients, outputs = signals[site.layer]
            known = Statistics.of(context.kept, site.layer)
            known.keys.update(keys)
            known.gradients.update(gradients)
            known.outputs.update(outputs.square().mean(1))
            known.keep(context.kept, site.layer)
            rate = config.learning_rate / config.steps / len(places) * float(known.outputs.mean.sqrt())
            shift = output_shift(known.keys.normalised(keys), known.gradients.normalised(gradients), rate)
            change = ridge_shift(keys, shift, config.ridge * float(keys.square().sum(1).mean()))
            whole = context.sites.weight(site).detach().double().norm()
            context.write(site, change, owners)
            for owner, own in zip(owners, change.left.norm(dim=0) * change.right.norm(dim=1) / whole, strict=True):
                shares[owner] += float(own)
    return [
        Figures(nats=nats, steps=config.steps, share=share)
        for nats, share in zip(_nats(context, rows), shares, strict=True)
    ]
