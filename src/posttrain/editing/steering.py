"""Make steering vectors: from the difference of a model's states in two answers, or by gradient on the wanted answers.

The vector is added to the output h of one layer (`models/steering_vector.py`), h' = h + strength * v, and no weight
changes. For pairs of a wanted answer y+ and a present answer y- to a prompt x, with h(x, y) the mean of the layer's
states over the tokens of y:

    contrast   v = mean over pairs of  h(x, y+) - h(x, y-)             Rimsky et al. 2024, arXiv:2312.06681, section 3
    trained    v = argmin mean over pairs of  - 1/|y+| sum_t log p_v(y+_t | x, y+_<t),   |v| <= bound * |h|

Rimsky et al. have answers of one letter, so their mean is over one token. In the second line (Subramani et al. 2022,
arXiv:2205.05124) the token that ends the turn is one of y+, and |h| is the mean length of the layer's states where the
answer is predicted. Adam takes steps whose size is a share of those states, so that one learning rate suits all models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.data.chat import encode_prompt
from posttrain.data.tokens import shared_length
from posttrain.editing.reading import batches, padded, raised, stopping_after
from posttrain.editing.sites import Sites, first_of
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.models.logits import logits_at
from posttrain.models.steering_vector import SteeringVector

__all__ = [
    "Answered",
    "Step",
    "Trained",
    "VectorTraining",
    "answer_means",
    "contrast",
    "header_of",
    "layer_in",
    "train_vector",
]

BATCH_TOKENS = 2048
"""Padded tokens in a forward pass on a CPU; on a GPU eight times as many."""


class VectorTraining(Config):
    """How a vector is trained."""

    steps: int = Field(default=60, ge=1)
    """Steps of Adam, at most."""
    learning_rate: float = Field(default=0.02, gt=0)
    """The size of a step in each number of the vector, as a share of the size of a number of the states."""
    bound: float = Field(default=0.3, gt=0)
    """The vector's greatest length at strength 1, as a multiple of the states' length."""
    stop_at_loss: float = Field(default=0.05, ge=0)
    """Training ends when the loss is below this, in nats per token."""


class Answered(NamedTuple):
    """A prompt with an answer in token ids. end: the token that ends the turn, or none; location: file and line."""

    prompt: list[int]
    answer: list[int]
    end: list[int]
    location: str = ""


class Step(NamedTuple):
    """A step of training. loss: in nats per token, before the step; tokens: read so far; wall_s: seconds so far."""

    number: int
    loss: float
    tokens: int
    wall_s: float


class Trained(NamedTuple):
    """The result of training: steps; loss: of the vector, in nats per token; tokens: read; bounded: whether the vector
    is as long as allowed."""

    steps: int
    loss: float
    tokens: int
    bounded: bool


def layer_in(sites: Sites, layer: int | None, location: str) -> int:
    """Return the number of a layer; negative ones count from the end, and None is the middle. Raise ConfigError if
    there is no such layer.
    """
    count = len(sites.layers)
    number = (count - 1) // 2 if layer is None else layer + count if layer < 0 else layer
    if not 0 <= number < count:
        cause = f"there is no layer {layer}: {type(sites.model).__name__} has layers 0 to {count - 1}"
        raise ConfigError(Problem(location, cause, "choose one of them, or layer: auto"))
    return number


def header_of(tokenizer: Any) -> list[int]:
    """Return the token ids that the chat template writes before an answer, with which every prompt ends. Raise
    ConfigError if there are none.
    """
    header: list[int] = []
    if tokenizer.chat_template:
        one, other = (encode_prompt(text, tokenizer) for text in ("a", "好"))
        same = shared_length(one[::-1], other[::-1])
        bare = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], add_generation_prompt=False, tokenize=True, return_dict=False
        )
        written = len(one) - shared_length(bare, one)  # some templates write nothing more for an answer
        header = one[len(one) - (written if 0 < written <= same else same) :]
    if not header:
        cause = "the tokenizer has no chat template that shows where an answer begins"
        raise ConfigError(Problem("where", cause, "where: all"))
    return header


def answer_means(
    sites: Sites, layer: int, rows: Sequence[Answered], *, before: bool = False, batch_tokens: int = 0
) -> Tensor:
    """Return the means of a layer's states over the tokens of each answer, (N, D), in float32 or finer.

    before: return the mean lengths of the states from which the answer and its end are predicted instead, (N, 1).
    """
    model: Any = sites.model
    module = model.get_submodule(sites.layers[layer])
    seen: list[Tensor] = []
    found: dict[int, Tensor] = {}
    ids_of = [[*row.prompt, *row.answer] for row in rows]
    with torch.no_grad(), module.register_forward_hook(lambda m, args, output: seen.append(first_of(output))):
        for batch in batches([len(ids) for ids in ids_of], batch_tokens or _at_once(model)):
            with stopping_after(module):
                model(input_ids=padded([ids_of[i] for i in batch], model.device), use_cache=False)
            states = raised(seen.pop())
            for own, i in zip(states, batch, strict=True):
                first = len(rows[i].prompt)
                taken = own[first - before : len(ids_of[i])]
                found[i] = taken.norm(dim=1, keepdim=True).mean(0) if before else taken.mean(0)
    return torch.stack([found[i] for i in range(len(rows))])


def contrast(wanted: Tensor, present: Tensor) -> Tensor:
    """Return the mean of the differences of states, (N, D) and (N, D) -> (D,)."""
    return (wanted - present).mean(0)


def train_vector(
    sites: Sites,
    part: SteeringVector,
    layer: int,
    rows: Sequence[Answered],
    config: VectorTraining,
    tell: Callable[[Step], None] = lambda step: None,
    *,
    batch_tokens: int = 0,
) -> Trained:
    """Train the part's vector in place, at strength 1; it begins at 0, and nothing else of the model may move. tell:
    takes each step. Raise PosttrainError if the loss is not finite.
    """
    began, vector = time.monotonic(), part.vector
    with part.switched_off():
        size = float(answer_means(sites, layer, rows, before=True, batch_tokens=batch_tokens).mean())
    _check_finite(size, rows)
    part.strength = 1.0
    vector.data.zero_()
    step_size = config.learning_rate * size / len(vector) ** 0.5
    optimizer = torch.optim.Adam([vector], lr=step_size)
    steps = tokens = 0
    while True:
        optimizer.zero_grad()
        loss, read = _loss_and_gradient(sites.model, rows, batch_tokens)
        tokens += read
        _check_finite(loss, rows)
        if loss < config.stop_at_loss or steps == config.steps:
            break
        optimizer.step()
        steps += 1
        with torch.no_grad():
            vector.mul_(min(1.0, config.bound * size / max(float(vector.norm()), 1e-30)))
        tell(Step(steps, loss, tokens, time.monotonic() - began))
    vector.grad = None
    return Trained(steps, loss, tokens, float(vector.detach().norm()) > 0.999 * config.bound * size)


def _check_finite(value: float, rows: Sequence[Answered]) -> None:
    if not math.isfinite(value):
        mend = "take a smaller learning_rate or bound, or the model in float32"
        raise PosttrainError(Problem(rows[0].location, "the loss of the vector is not finite", mend))


def _loss_and_gradient(model: Any, rows: Sequence[Answered], batch_tokens: int) -> tuple[float, int]:
    """Return the mean over rows of the nats per token of the answer and its end, and the tokens that were read; add the
    gradient to what can be trained."""
    whole = [[*row.prompt, *row.answer, *row.end] for row in rows]
    total, read = 0.0, 0
    for batch in batches([len(ids) for ids in whole], batch_tokens or _at_once(model)):
        ids = padded([whole[i] for i in batch], model.device)  # (B, T)
        at = torch.arange(ids.shape[1] - 1, device=ids.device)
        first = torch.tensor([len(rows[i].prompt) for i in batch], device=ids.device)[:, None] - 1
        stop = torch.tensor([len(whole[i]) for i in batch], device=ids.device)[:, None] - 1
        asked = (at >= first) & (at < stop)  # (B, T - 1): the next token is of the answer
        columns = asked.any(0).nonzero()[:, 0]
        logits = logits_at(model, ids, columns)[asked[:, columns]]  # (n, V)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = functional.cross_entropy(precise, ids[:, 1:][asked], reduction="none")
        share = (asked / (stop - first) / len(rows))[asked]
        loss = (nats * share).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
        read += sum(len(whole[i]) for i in batch)
    return total, read


def _at_once(model: Any) -> int:
    return BATCH_TOKENS * (8 if model.device.type == "cuda" else 1)
