"""The common course of locate-then-edit methods: read keys, search target vectors, solve for each layer, write.

    rows       each edit's prompt, bare and after some texts, as plain text and in the chat template
    K          (d, E): the keys at the subjects, means over the rows
    delta      (D, E): what the output must gain for the answer to be said (targets.py)
    dW         = solve(K, R), R the part of delta that this layer takes on

With several layers, delta belongs to the state of the last one. From the first layer on, each takes an equal share of
what is still missing, and keys are read again, because the layers below have changed (MEMIT, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from posttrain.editing.editors._base import EditContext, EditorConfig, Figures
from posttrain.editing.edits import Edit, Row, RowMaker
from posttrain.editing.reading import Seen, look
from posttrain.editing.sites import Site, Sites
from posttrain.editing.solve import alignment, row_means
from posttrain.editing.tails import Where
from posttrain.editing.targets import Found, TargetConfig, search
from posttrain.models.edit_delta import LowRank

__all__ = ["LocatedConfig", "Solved", "Solver", "locate_then_edit"]

DROPPED = 0.05
"""Share of the longest target vectors that the norm anchor leaves out of its mean."""


class LocatedConfig(EditorConfig):
    """What every locate-then-edit method has."""

    target: TargetConfig = TargetConfig()
    """How the target vectors are searched."""
    contexts: int = Field(5, ge=0, le=100)
    """Texts that stand before the prompt, one at a time, while keys are read and vectors searched. At most 100: every
    edit is read after each of them in every step, so the time grows with them; published editors have 5 to 20."""
    norm_anchor: bool = False
    """Give every target vector the mean length that such vectors have in the untouched model, and skip an edit whose
    vector is twice as long: long sequences of edits keep the model whole for longer (NAS, arXiv:2602.02543)."""
    bare: float | None = Field(None, gt=0, lt=1)
    """The share of the prompt without a text before it among its rows; all rows alike when left out."""

    @property
    def needs_moments(self) -> bool:
        """Whether the second moments of keys are used."""
        return True

    @property
    def most_steps(self) -> int:
        return self.target.steps

    @property
    def texts_before(self) -> int:
        return self.contexts

    def lays_out(self, maker: RowMaker, edit: Edit, texts: Sequence[str]) -> list[Row]:
        return maker.rows(edit, texts, bare=self.bare)


class Solved(NamedTuple):
    """A change for one layer, the directions (d, E) that write each edit's key, and the condition of the system."""

    change: LowRank
    directions: Tensor
    condition: float | None = None


Solver = Callable[[Site, Tensor, Tensor, Tensor], Solved]
"""Maps (site, K (d, E), R (D, E), bare keys (d, E)) to a change. All tensors are float64."""


class _Rows:
    """The rows of some edits, with what is read at their subjects."""

    def __init__(self, context: EditContext, rows: Sequence[Sequence[Row]]) -> None:
        self.context, self.count = context, len(rows)
        device = context.sites.model.device
        self.flat = [row for own in rows for row in own]
        self.owner = torch.tensor([e for e, own in enumerate(rows) for _ in own], device=device)
        self.weights = torch.tensor([row.weight for row in self.flat], device=device)
        first = [next(i for i, row in enumerate(own) if row.bare) for own in rows]
        starts = torch.tensor([sum(map(len, rows[:e])) for e in range(len(rows))])
        self.first = starts + torch.tensor(first)

    def look(self, sites: Sequence[Site]) -> Seen:
        """Read keys, values and states of some layers as they are now."""
        return look(self.context.sites, self.flat, sites)

    def mean(self, values: Tensor) -> Tensor:
        """Return each edit's mean over its rows, (d, E), in float64."""
        return row_means(values, self.weights, self.owner, self.count).T

    def bare(self, values: Tensor) -> Tensor:
        """Return the values of each edit's bare prompt, (d, E), in float64."""
        return values[self.first.to(values.device)].double().T


def locate_then_edit(
    config: LocatedConfig, context: EditContext, edits: Sequence[Edit], where: Where, solve: Solver
) -> list[Figures]:
    """Write edits into the model and return the figures of each. where: to what a target vector is added."""
    places = context.places(config)
    last = places[-1]
    if config.needs_moments:
        context.moments(places)  # of all layers in one pass
    laid = context.rows(config, edits)
    found = search(context.search, edits, laid, last, where, config.target)
    rows = _Rows(context, laid)
    before = rows.look([last])
    wanted, skipped = found.deltas.T, [""] * len(edits)  # (D, E)
    if config.norm_anchor:
        wanted, skipped = _anchored(config, context, last, where, found, rows.mean(before.values[last.layer]))
    start = rows.mean(before.states[last.layer])
    aligned: list[Tensor] = []
    shares = torch.zeros(len(edits), dtype=torch.float64, device=wanted.device)
    reached = torch.zeros_like(shares)
    condition: float | None = None
    for number, site in enumerate(places):
        seen = rows.look([site] if site == last else [site, last])
        keys = rows.mean(seen.keys[site.layer])
        if where == "value":
            missing = wanted
        else:
            moved = rows.mean(seen.states[last.layer]) - start
            missing = (wanted - moved) / (len(places) - number)
        values = rows.mean(seen.values[site.layer])
        change = missing if where == "value" else _before_norm(context.sites, site, values, missing)
        solved = solve(site, keys, change, rows.bare(seen.keys[site.layer]))
        weight = site.oriented(context.sites.weight(site).detach()).double()
        was, norm = weight @ keys, weight.norm()  # before the weight is written, which may be this very tensor
        context.write(site, solved.change, range(len(edits)))
        gained = site.oriented(context.sites.weight(site).detach()).double() @ keys - was
        if where == "state":
            gained = _after_norm(context.sites, site, values, gained)
        aligned.append(alignment(keys, solved.directions))
        own = solved.change.left.norm(dim=0) * solved.change.right.norm(dim=1)
        shares += own / norm
        reached += (gained * missing).sum(0) / missing.square().sum(0).clamp_min(1e-300) / len(places)
        condition = solved.condition if solved.condition is not None else condition
    for layer, keys_now in _keys_after(rows, places).items():
        context.past.setdefault(layer, []).append(keys_now)
    lowest = torch.stack(aligned).amin(0)
    return [
        Figures(
            nats=float(found.nats[e]),
            steps=int(found.steps[e]),
            alignment=float(lowest[e]),
            share=float(shares[e]),
            condition=condition,
            realised=float(reached[e]),
            skipped=skipped[e],
        )
        for e in range(len(edits))
    ]


def _keys_after(rows: _Rows, places: Sequence[Site]) -> dict[int, Tensor]:
    """Return the edits' keys in every edited layer, read again with the new weights. They lie in memory as they do when
    they are read from a file: products of matrices that lie otherwise differ in the last bit.
    """
    seen = rows.look(places)
    return {site.layer: rows.mean(seen.keys[site.layer]).contiguous() for site in places}


def _before_norm(sites: Sites, site: Site, values: Tensor, wanted: Tensor) -> Tensor:
    """Return the change of the matrix's output that changes the layer's output by `wanted`, (D, E).

    Where a norm stands behind the matrix, its output y = g m / rms(m) must become y + wanted; so m must become
    (y + wanted) / g rms(m). The norm sets the length, so this is exact up to the new length. values: m, (D, E).
    """
    if not site.norm:
        return wanted / site.factor
    norm = sites.model.get_submodule(site.norm)
    weight = sites.weight(site)
    with torch.no_grad():
        scale = norm(torch.ones(1, len(wanted), device=weight.device, dtype=weight.dtype))[0].double()  # g
        image = norm(values.T.to(weight.dtype)).double().T / scale[:, None]  # m / rms(m)
    length = (values * image).sum(0) / image.square().sum(0)  # rms(m)
    return (image + wanted / site.factor / scale[:, None]) * length - values


def _after_norm(sites: Sites, site: Site, values: Tensor, gained: Tensor) -> Tensor:
    """Return what the layer's output gains when the matrix's output gains `gained`, (D, E). The norm behind a matrix
    holds the length, so that a long change is not there whole. values: the output before, (D, E).
    """
    if not site.norm:
        return gained * site.factor
    norm, dtype = sites.model.get_submodule(site.norm), sites.weight(site).dtype
    with torch.no_grad():
        before, after = (norm(states.T.to(dtype)).double().T for states in (values, values + gained))
    return (after - before) * site.factor


def _anchored(
    config: LocatedConfig, context: EditContext, site: Site, where: Where, found: Found, values: Tensor
) -> tuple[Tensor, list[str]]:
    """Return the deltas (D, E) with which each target vector has the anchor's length, and which edits are skipped.

        v* = v + delta,   mu = mean |v*| in the untouched model;   |v*| > 2 mu: skip;   else v*' = v* mu / |v*|

    values: the matrix's output v, (D, E).
    """  # fmt: skip
    wanted = values + found.deltas.T
    lengths = wanted.norm(dim=0)
    key = f"{config.kind} {site.layer}"
    if key not in context.anchors:
        with context.untouched():
            laid = context.rows(config, context.sample)
            known = search(context.search, context.sample, laid, site, where, config.target)
            rows = _Rows(context, laid)
            sample = (rows.mean(rows.look([site]).values[site.layer]) + known.deltas.T).norm(dim=0)
        kept = sample.sort().values[: max(1, round(len(sample) * (1 - DROPPED)))]
        context.anchors[key] = float(kept.mean())
        context.say(f"norm anchor: target vectors of {len(kept)} edits have a mean length of {float(kept.mean()):.3g}")
    mean = context.anchors[key]
    long = lengths > 2 * mean
    deltas = torch.where(long, torch.zeros_like(wanted), wanted * (mean / lengths) - values)
    why = "its target vector is more than twice as long as the anchor"
    return deltas, [why if bool(one) else "" for one in long]
