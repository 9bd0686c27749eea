"""Steer the model: add one vector to the states behind one layer, and change no weight.

    h' = h + strength * v

The vector is the difference between the states in the wanted answers and in the model's present ones (`contrast`,
Rimsky et al. 2024, arXiv:2312.06681), or is trained on the wanted answers (`trained`, Subramani et al. 2022,
arXiv:2205.05124); `editing/steering.py` has the mathematics. It is a few kB beside the model, and its strength can be
set afterwards: `strengths` examines several. It was made for how a model behaves (style, role, refusal). A fact is
asked for in the table of all methods, too: there it says how much of everything else one direction moves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from posttrain.config.change import Change
from posttrain.editing.sites import Sites, find_sites
from posttrain.editing.steering import (
    Answered,
    Step,
    answer_means,
    contrast,
    header_of,
    layer_in,
    train_vector,
)
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.added import attach
from posttrain.models.disk import whole_file
from posttrain.models.load import LoadedModel
from posttrain.models.save import save_model
from posttrain.models.steering_vector import SteeringVector
from posttrain.registry import register
from posttrain.studies.candidates import END, Candidate, CellContext, Point
from posttrain.studies.steer_config import SteerConfig
from posttrain.studies.steer_rows import Said, contrasted, said_in, targets_of
from posttrain.studies.train_rows import Steps, allowed_rows

__all__ = ["steer"]


class Made(NamedTuple):
    """A vector (D,), the cost of making it, and notes for the card."""

    vector: Tensor
    cost: dict[str, float]
    notes: list[str]


@register("method", "steer", config=SteerConfig, paper="arXiv:2312.06681")
def steer(config: SteerConfig, cell: CellContext) -> Iterator[Candidate]:
    """Yield the steered model at each strength, and at its end. In a sequence, the vector of the first changes is that
    of all of them together."""
    steered = _Steered(config, cell)
    total = len(cell.changes)
    for taught in range(1, total):
        if cell.sequence is not None and taught % cell.sequence == 0:
            made = steered.take(cell.changes[:taught])
            point = Point("changes", taught)
            strength, notes = steered.end()
            yield Candidate(point, steered.at(strength, point), cost=made.cost, notes=notes, changes=taught)
    made = steered.take(cell.changes)
    for strength in config.strengths or ():
        point = Point("strength", strength)
        if not cell.examined(point):
            yield Candidate(point, steered.at(strength, point))
    strength, notes = steered.end()
    respondent = steered.at(strength, END)
    product = None
    if cell.keep != "none":
        product = cell.folder / "model"
        save_model(steered.loaded.model, steered.loaded.tokenizer, product)
    same = Point("strength", strength) if strength in (config.strengths or ()) else None
    notes = [*made.notes, *notes]
    yield Candidate(
        END, respondent, cost=made.cost, product=product, notes=notes, scratch=[cell.folder / "training"], same=same
    )


class _Steered:
    """A copy of the model with a steering vector, which shares the model's weights."""

    def __init__(self, config: SteerConfig, cell: CellContext) -> None:
        self.config, self.cell = config, cell
        self.loaded = cell.bench.lent()
        model: Any = self.loaded.model
        self.sites: Sites = find_sites(model)
        location = f"method '{config.label}': layer"
        self.layer = layer_in(self.sites, None if config.layer == "auto" else config.layer, location)
        header = header_of(self.loaded.tokenizer) if config.where == "answer" else []
        settings = {"layer": self.layer, "module": self.sites.layers[self.layer]}
        self.part = SteeringVector(model, {**settings, "where": config.where, "header": header})
        attach(model, self.part)
        model.requires_grad_(False)
        model.eval()

    def at(self, strength: float, point: Point) -> ModelRespondent:
        """Return the model at a strength. It is the same model each time, so only the last one may be asked."""
        self.part.strength = strength
        return ModelRespondent(LoadedModel(self.loaded.model, self.loaded.tokenizer, self.cell.name(point)))

    def end(self) -> tuple[float, list[str]]:
        """Return the strength at the end, and notes on how it was chosen. Of equally good strengths, the weakest is
        chosen."""
        if self.config.strength != "search":
            return self.config.strength, []
        found: dict[float, float] = {}
        for strength in self.config.strengths or ():
            scores = self.cell.select(self.at(strength, END))
            found[strength] = sum(scores.values()) / len(scores)
        best = max(found, key=lambda strength: (found[strength], -abs(strength)))
        curve = ", ".join(f"{strength:g}: {value:.3f}" for strength, value in found.items())
        return best, [f"strength {best:g} chosen by {', '.join(scores)}: {curve}"]

    def take(self, changes: Sequence[Change]) -> Made:
        """Put the vector of some changes into the model, from the file of an earlier run if there is one."""
        path = self.cell.folder / "training" / f"vector-{len(changes)}.safetensors"
        made = _kept(path)
        if made is None:
            made = self._made(changes)
            with whole_file(path) as temporary:
                told = {"made": json.dumps({"cost": made.cost, "notes": made.notes})}
                save_file({"vector": made.vector}, str(temporary), metadata=told)
        self.part.vector.data.copy_(made.vector)
        return made

    def _made(self, changes: Sequence[Change]) -> Made:
        config, before, notes = self.config, self.cell.bench.before, list[str]()
        began = time.monotonic()
        pairs = targets_of(changes)
        if config.pairs is not None:
            sources = config.sources([change.name for change in changes] or [""], self.cell.bench.base)
            pairs = said_in(allowed_rows(sources, self.cell.bench.forbidden))
        layer = f"{self.layer} of {len(self.sites.layers)}"
        if config.source == "trained":
            steps = self._trained(_encoded(before, [(one, one.wanted) for one in pairs]), notes)
        else:
            pairs, steps = contrasted(pairs, before, notes.append), {"steps": 0.0, "tokens": 0.0}
            rows = _encoded(before, [(one, said) for one in pairs for said in (one.wanted, one.other or "")])
            with self.part.switched_off():
                wanted, present = answer_means(self.sites, self.layer, rows).view(len(pairs), 2, -1).unbind(1)
            self.part.vector.data.copy_(contrast(wanted, present))
            if not bool(self.part.vector.isfinite().all()):
                raise PosttrainError(Problem(config.label, "the states are not finite", "load the model in float32"))
            steps["tokens"] = float(sum(len(row.prompt) + len(row.answer) for row in rows))
            shown = [f"{one.wanted!r} instead of {one.other!r}" for one in pairs[:3]]
            shown += ["..."] if len(pairs) > 3 else []
            notes.append(f"the contrast of {len(pairs)} pair{'' if len(pairs) == 1 else 's'}: {'; '.join(shown)}")
            size = float(present.norm(dim=1).mean())
            notes.append(f"its length is {float(self.part.vector.norm()) / size:.2f} of the states' in present answers")
        notes.append(f"added behind layer {layer} (counted from 0)")
        weights = sum(parameter.numel() for parameter in self.loaded.model.parameters())
        moved = self.part.vector.numel()
        cost = {"train_s": time.monotonic() - began, **steps, "moved": float(moved), "moved_share": moved / weights}
        return Made(self.part.vector.detach().cpu().clone(), cost, notes)

    def _trained(self, rows: Sequence[Answered], notes: list[str]) -> dict[str, float]:
        """Train the vector, tell of each step, and return what it cost."""
        progress = Steps(self.cell, notes)
        progress.start(0, self.config.training.steps)

        def tell(step: Step) -> None:
            numbers = {"loss_nats": step.loss, "loss_new_nats": step.loss, "wall_s": step.wall_s}
            progress.step({"step": step.number, **numbers, "tokens": step.tokens})

        self.part.vector.requires_grad_(True)
        with torch.enable_grad():
            found = train_vector(self.sites, self.part, self.layer, rows, self.config.training, tell)
        self.part.vector.requires_grad_(False)
        longest = "; it is as long as `bound` allows" if found.bounded else ""
        notes.append(f"trained in {found.steps} steps to {found.loss:.3f} nats per token{longest}")
        return {"steps": float(found.steps), "tokens": float(found.tokens)}


def _encoded(before: ModelRespondent, answers: Sequence[tuple[Said, str]]) -> list[Answered]:
    """Return answers as token ids. Raise DataError with every one that is longer than the model's positions."""
    rows, problems, limit = list[Answered](), list[Problem](), before.longest
    for said, answer in answers:
        pair = before.encode_pair(said.prompt, answer)
        rows.append(Answered(pair.prompt, pair.answer, pair.end, said.location))
        length = sum(map(len, pair))
        if length > limit:
            cause = f"has {length} tokens, the model has {limit} positions"
            problems.append(Problem(said.location, cause, "shorten it"))
    if problems:
        raise DataError(*dict.fromkeys(problems))
    return rows


def _kept(path: Path) -> Made | None:
    """Return the vector that an earlier run has made; None if there is none, or its file is damaged."""
    try:
        with safe_open(str(path), "pt") as kept:
            told = json.loads((kept.metadata() or {})["made"])
            return Made(kept.get_tensor("vector"), told["cost"], told["notes"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
