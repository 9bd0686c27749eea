"""Choose learning rates: a default for each tuner and size of model, and a short range test.

`learning_rate: auto` takes the rate of this table. N is the number of parameters of the whole model:

    rate(N) = at_pocket x (N / 3.25 M) ^ -fall

`at_pocket` is the best of three rates for one fact in 20 steps on pocket (`python benchmarks/tuners.py --choose`).
`fall` of `full` was measured on SmolLM2-135M-Instruct, the others are guesses (figures: `docs/notes.md`). The table
does not depend on the data: for many rows and steps it is only a first guess.

`learning_rate: find` makes a range test. It starts from the weights where training starts and uses the rows of the
first step. The rate of AdamW rises by a constant factor at each of `TRIES` small steps, from a thirtieth of the table's
rate to thirty times it. The test stops when the loss blows up. Adam moves a weight by about the rate at each step.
Therefore D, the sum of the rates until the loss has made nine tenths of its fall, is the distance that the weights must
move. The chosen rate covers this distance in a quarter of the run's steps, at most five:

    rate = D / min(max(steps // 4, 1), 5),      at most a quarter of the rate at which the loss blew up

Weights, buffers and random states are restored bit by bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.models.meter import Meter
from posttrain.training.batches import Forms, Learner, Step, StepLoader
from posttrain.training.folder import RunFolder
from posttrain.training.precision import arithmetic
from posttrain.training.steps import StepSource

__all__ = ["RATES", "Found", "Law", "auto_rate", "find_rate", "rate_from", "rate_of"]

POCKET = 3_246_528
"""Number of parameters of pocket."""
TRIES = 24
"""Maximum number of steps of a range test."""
SPAN = 30.0
"""Half the width of the range, as a factor: it goes from the table's rate / SPAN to the table's rate x SPAN."""
BLOWN_UP = 1.5
"""The loss has blown up if it is more than this many times the first one, and more than 0.5 nats above it. The test
then ends. It also ends at a loss that is not finite.
"""
WAY = 0.9
"""Share of the fall of the loss at which the distance that the weights must move is measured."""
AT_MOST_STEPS = 5
"""Maximum number of steps in which the chosen rate must cover that distance."""
CUT_AT_THE_END = {"diff_pruning"}
"""Tuners that cut the change of the weights after the last step. For these the effect of a step on the loss does not
show their result.
"""


class Law(NamedTuple):
    """The rate on pocket, and the exponent with which it falls with the size of the model."""

    at_pocket: float
    fall: float


RATES: dict[str, Law] = {
    "full": Law(4.5e-5, 0.3),
    "freeze": Law(3e-4, 0.3),
    "fishmask": Law(3e-4, 0.3),
    "diff_pruning": Law(9e-3, 0.3),
    "lora": Law(4.5e-4, 0.15),
    "adapter": Law(1.5e-3, 0.15),
    "loreft": Law(6e-4, 0.15),
    "bitfit": Law(2e-2, 0.3),
    "ia3": Law(3e-2, 0.0),
    "prompt_tuning": Law(9e-3, 0.0),
    "p_tuning": Law(3e-3, 0.0),
    "prefix_tuning": Law(2e-2, 0.0),
    "ptuning_v2": Law(2e-2, 0.0),
}
"""The laws by kind of tuner. Other tuners use the law of `full`, which is the most careful one."""


def auto_rate(tuner: str, parameters: int) -> float:
    """Return the table's rate, rounded to two digits. parameters: number of parameters of the whole model."""
    law = RATES.get(tuner, RATES["full"])
    return float(f"{law.at_pocket * (max(parameters, 1) / POCKET) ** -law.fall:.1e}")


class Found(NamedTuple):
    """The result of a range test. rate: the chosen rate; rates, losses: the rate and the loss of each try, losses in
    nats; blown_up: the rate at which the loss blew up, None if it never did.
    """

    rate: float
    rates: list[float]
    losses: list[float]
    blown_up: float | None

    def __str__(self) -> str:
        lowest = min(self.losses)
        end = f", and blew up at {self.blown_up:.2g}" if self.blown_up is not None else ""
        return (
            f"learning rate {self.rate:g}, found by a range test of {len(self.rates)} tries from {self.rates[0]:.2g} "
            f"to {self.rates[-1]:.2g}: the loss on the first step's rows went from {self.losses[0]:.3f} to "
            f"{lowest:.3f} nats{end}"
        )


def rate_from(rates: list[float], losses: list[float], steps: int | None) -> Found:
    """Choose the rate from a range test, for a run of `steps` steps (None: the number is not known).

    losses[i] is the loss of the weights before the step with rates[i]; one more loss may follow. Raise PosttrainError
    if the loss never fell.
    """
    start = losses[0]
    ended = next((i for i, x in enumerate(losses) if not x <= max(BLOWN_UP * start, start + 0.5)), None)
    sound = losses[:ended]
    blown_up = rates[ended - 1] if ended is not None else None
    lowest = min(sound)
    there = next((i for i, x in enumerate(sound) if x <= start - WAY * (start - lowest)), 0)
    if lowest >= start or there == 0:
        mend = "give a learning_rate, or look whether the model says already what it shall learn"
        cause = f"the range test found none at which the loss falls from {start:.4g} nats"
        raise PosttrainError(Problem("learning_rate", cause, mend))
    rate = math.fsum(rates[:there]) / (AT_MOST_STEPS if steps is None else min(max(steps // 4, 1), AT_MOST_STEPS))
    if blown_up is not None:
        rate = min(rate, blown_up / 4)
    return Found(float(f"{rate:.1e}"), rates, losses, blown_up)


def rate_of(
    learner: Learner,
    parameters: int,
    source: StepSource,
    steps: int | None,
    dtype: torch.dtype | None,
    *,
    folder: RunFolder | None,
    resume: bool,
    say: Callable[[str], None],
) -> float:
    """Return the peak learning rate: the given one, that of the table, or the result of a range test.

    The result of a range test is kept in the folder, for a resumed run. parameters: number of parameters of the whole
    model; steps: of the run, None if not known; dtype: of the forward passes, see `arithmetic`. Raise ConfigError if a
    range test is not possible: with a tuner in `CUT_AT_THE_END`, or in several processes.
    """
    optimizer, tuner = learner.config.optimizer, str(learner.config.tuner.model_dump()["kind"])
    if not isinstance(optimizer.learning_rate, str):
        return optimizer.learning_rate
    middle = auto_rate(tuner, parameters)
    if optimizer.learning_rate == "auto":
        say(f"learning rate {middle:g}, the default for {tuner} and {parameters / 1e6:,.1f} M parameters")
        return middle
    if tuner in CUT_AT_THE_END:
        cause = f"{tuner} cuts its change after the last step, so a range test tells nothing about it"
        raise ConfigError(Problem("learning_rate", cause, "use auto, or give a number"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        mend = "find it in one process first, and give the number"
        raise ConfigError(Problem("learning_rate", "find runs in a single process", mend))
    if folder and resume and (kept := folder.rate()) is not None:
        say(f"learning rate {kept:g}, as found when the run began")
        return kept
    state = source.state()
    step = next(iter(StepLoader(source, 1, learner.forms)))
    source.restore(0, state)
    found = find_rate(learner, step, middle=middle, steps=steps, dtype=dtype)
    say(str(found))
    if folder:
        folder.keep_rate(found._asdict())
    return found.rate


def find_rate(learner: Learner, step: Step, *, middle: float, steps: int | None, dtype: torch.dtype | None) -> Found:
    """Make the range test for a run of `steps` steps on the rows of one step, around the rate `middle`. The model is in
    evaluation mode during the test. Afterwards it is as it was before.
    """
    model, config = learner.model, learner.config.optimizer
    rates = [middle * SPAN ** (2 * i / (TRIES - 1) - 1) for i in range(TRIES)]
    losses: list[float] = []
    kept = "the weights are put back as they were; the same command searches anew"
    with put_back(model), Meter("searching the learning rate", TRIES, "tries", kept=kept) as meter:
        moving = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(moving, rates[0], config.betas, config.epsilon, weight_decay=0.0)
        tried: list[float] = []
        for rate in [*rates, None]:
            optimizer.zero_grad(set_to_none=True)
            losses.append(_backward(model, learner.forms, step, dtype, gradients=rate is not None))
            if rate is None or not losses[-1] <= max(BLOWN_UP * losses[0], losses[0] + 0.5):
                break
            if config.max_grad_norm:
                nn.utils.clip_grad_norm_(moving, config.max_grad_norm)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            tried.append(rate)
            meter.more(1, tokens=step.tokens)
    return rate_from(tried, losses, steps)


def _backward(
    model: PreTrainedModel | PeftModel, forms: Forms, step: Step, dtype: torch.dtype | None, *, gradients: bool
) -> float:
    """Return the loss of a step in nats, as the trainer computes it; compute its gradients if `gradients` is True."""
    scales = forms.new.scales(step.new_units, step.old_units)
    total = 0.0
    with torch.set_grad_enabled(gradients):
        with arithmetic(model.device, dtype):
            forms.new.begin_step(model, step.micro_batches, 0)
        for micro in step.micro_batches:
            with arithmetic(model.device, dtype):
                loss = forms.of(micro).loss(model, micro)
            scale = torch.where(micro.old, scales.old, scales.new)
            value = (loss.nats * scale.to(loss.nats)).sum()
            if gradients:
                value.backward()  # type: ignore[no-untyped-call]
            total += float(value.detach())
    return total


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Undo all changes of parameters, buffers, gradients and random states after the block."""
    tensors = [p for p in model.parameters() if p.requires_grad] + list(model.buffers())
    before = [t.detach().clone() for t in tensors]
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
        model.zero_grad(set_to_none=True)
        model.train(was_training)
