"""Measure how far a rebuilt pocket is from the shipped one, in weights and in answers."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import torch

from posttrain.data.records import Message
from posttrain.errors import MissingError
from posttrain.exams.normalising import normalise
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tools.pocket.skills import draw

__all__ = ["distance"]

QUESTIONS = 400


def distance(folder: Path, *, questions: int = QUESTIONS) -> dict[str, dict[str, Any]]:
    """Return the distances of the rebuilt `base` and `chat` in a folder from the shipped models.

    `weights` is the relative distance ||a - b|| / ||b|| over all parameters: 0 when rebuilt bit for bit, about 1.4 for
    two models that have nothing in common. For chat, `same_answers` is the share of questions with equal answers.
    `summary` is a line for people.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in ("base", "chat"):
        try:
            shipped = load_model(f"pocket:{kind}")
        except MissingError:
            found[kind] = {"summary": "no shipped model to compare with"}
            continue
        built = load_model(str(folder / kind))
        ours, theirs = built.model.state_dict(), shipped.model.state_dict()
        if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
            found[kind] = {"summary": "another shape than the shipped model; weights cannot be compared"}
            continue
        with torch.no_grad():
            gap = sum(float((ours[k] - theirs[k]).square().sum()) for k in ours) ** 0.5
            size = sum(float(v.square().sum()) for v in theirs.values()) ** 0.5
        row: dict[str, Any] = {"weights": gap / size, "summary": f"relative weight distance {gap / size:.4f}"}
        if kind == "chat":
            rng = Random(0)
            asked = [(Message("user", draw(rng).question),) for _ in range(questions)]
            pairs = zip(ModelRespondent(built).generate(asked), ModelRespondent(shipped).generate(asked), strict=True)
            row["same_answers"] = sum(normalise(a) == normalise(b) for a, b in pairs) / questions
            row["summary"] += f", {row['same_answers']:.1%} of {questions} answers alike"
        found[kind] = row
    return found
