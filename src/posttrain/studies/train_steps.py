"""What the trainings of a cell tell the study, and the candidates between before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel
from posttrain.models.meter import Doing, listener
from posttrain.studies.candidates import Candidate, CellContext, Point
from posttrain.studies.merge_back import Between
from posttrain.training.metrics import MetricsLog
from posttrain.training.progress import RunProgress

__all__ = ["Steps", "blends", "cost_of"]


class Steps(RunProgress):
    """Passes training steps on to the study, writes them into the cell's metrics.jsonl, and keeps what training says
    for the cell's card.

    before: steps of the trainings of the cell before this one; more: further fields of a line of metrics.jsonl.
    """

    def __init__(self, cell: CellContext, notes: list[str], *, before: int = 0, **more: str) -> None:
        self.cell = cell
        self.notes = notes
        self.before = cell.steps_before + before
        self.more = {**({"part": cell.part} if cell.part else {}), **more}
        self.metrics = MetricsLog(cell.metrics)
        self.listener = listener()
        self.steps: int | None = 0

    def say(self, text: str) -> None:
        self.notes.append(text)

    def doing(self, work: Doing) -> None:
        if self.listener is not None:
            self.listener(work)

    def start(self, first: int, steps: int | None) -> None:
        self.steps = steps
        self.metrics.take_up(self.before + first)
        if first:  # of an earlier run, which was stopped in this cell
            self.cell.bench.say(f"{self.cell.folder.name}: training goes on after step {first} of {steps}")

    def step(self, entry: Mapping[str, Any]) -> None:
        self.metrics.add({**entry, "step": int(entry["step"]) + self.before, **self.more})
        self.cell.on_step({**entry, "steps": self.steps})


def cost_of(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What some trainings have cost, from the fields of their `TrainResult`: sums; of peaks and shares the largest."""
    return {
        "train_s": sum(one["wall_s"] for one in results),
        "steps": float(sum(one["steps"] for one in results)),
        "tokens": float(sum(one["tokens"] for one in results)),
        "peak_gib": max(one["peak_gib"] for one in results),
        "moved": float(max(one["moved"][0] for one in results)),
        "moved_share": max(one["moved"][0] / max(one["moved"][1], 1) for one in results),
    }


def blends(weights: Sequence[float], cell: CellContext, tuned: PreTrainedModel | PeftModel) -> Iterator[Candidate]:
    """The models between the one before and the trained one, those that were examined left out."""
    waiting = [point for a in weights if not cell.examined(point := Point("blend", a))]
    between = Between(tuned, cell.bench.before.model) if waiting else None
    for point in waiting:
        assert between is not None
        with between.at(float(point.value or 0.0)) as model:
            yield Candidate(point, ModelRespondent(LoadedModel(model, cell.bench.before.tokenizer, cell.name(point))))
