"""Choosing by likelihood: the asks of a question with given answers, and which of them the model finds likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.exams.task import Ask, Reply, the_scored
from posttrain.inference.protocol import Plain, Prompt

__all__ = ["Chosen", "choice_asks", "chosen"]


class Chosen(NamedTuple):
    """best: number of the likeliest choice; shares: each choice's probability among the choices; normed: the likeliest
    per byte, which does not favour short choices (lm-eval's `acc_norm`).
    """

    best: int
    shares: tuple[float, ...]
    normed: int


def choice_asks(prompt: Prompt, choices: Sequence[str]) -> tuple[Ask, ...]:
    """One ask for each choice; after plain text a space goes before it, unless a side brings its own or is Chinese."""
    if isinstance(prompt, Plain):
        bare = prompt.text[-1:].isspace() or not prompt.text[-1:].isascii()
        choices = [c if bare or c[:1].isspace() or not c[:1].isascii() else f" {c}" for c in choices]
    return tuple(Ask("score", prompt, choice) for choice in choices)


def chosen(replies: Sequence[Reply], choices: Sequence[str]) -> Chosen:
    """The likeliest choice by total log-probability; the first one of equals."""
    nats = [reply.sum_nats for reply in the_scored(replies)]
    top = max(nats)
    weights = [math.exp(one - top) for one in nats]
    per_byte = [one / max(1, len(choice.encode())) for one, choice in zip(nats, choices, strict=True)]
    return Chosen(nats.index(top), tuple(w / sum(weights) for w in weights), per_byte.index(max(per_byte)))
