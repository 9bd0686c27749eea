"""Square the gradients of whole batches of rows, for estimates in which draws have mean zero (see `curvature.py`).

With random signs (or draws from the model itself) the score of a row has mean zero and is independent of the scores of
all other rows. So the cross terms between rows vanish, as they do between positions:

    E[(sum_r g_r)^2] = sum_r E[g_r^2]            since E[g_r g_s] = E[g_r] E[g_s] = 0 for r != s

So the square of a whole batch's *summed* gradient is as unbiased as the sum of the rows' squares, and it costs only one
training step. The price is variance: an entry measured on n squares has a relative standard deviation of about sqrt(2 /
n). (For *labels* this does not hold, because their scores do not have mean zero.) Each gradient is squared, added and
freed as soon as it is computed, so the gradients of all parameters are never in memory at the same time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from posttrain.models.examples import Example
from posttrain.models.logits import logits_at
from posttrain.models.marks import mark

IGNORED = -100
"""The target of a position that is padding."""


def row_generator(seed: int, job: int) -> torch.Generator:
    """Return the random numbers of a job: one draw for one row. They depend on nothing but the seed and its index."""
    return torch.Generator().manual_seed(random.Random(f"{seed}/{job}").getrandbits(63))


def asked_logits(model: nn.Module, rows: Sequence[Example], device: torch.device) -> Tensor:
    """Return the logits (N, V) of the supervised positions of some rows, row by row, each row's positions ascending.
    The rows are read together, padded on the right.
    """
    supervised = [row.positions[row.targets != IGNORED] for row in rows]
    columns = torch.cat(supervised).unique()  # type: ignore[no-untyped-call]  # (K,)
    asked = torch.stack([torch.isin(columns, own) for own in supervised])  # (R, K)
    inputs = torch.nn.utils.rnn.pad_sequence([row.inputs for row in rows], batch_first=True)
    inputs = mark(model, inputs, torch.stack([row.positions[0] + 1 for row in rows]))
    return logits_at(model, inputs.to(device), columns.to(device))[asked.to(device)]


def sign_pull(logits: Tensor, signs: Tensor) -> Tensor:
    """Return the gradient with respect to the logits of sum_v e_v sqrt(p_v) log p_v, with sqrt(p) held fixed. The
    gradient is w - p sum(w) with w = e sqrt(p). `logits`, `signs` and the result are (N, V). No graph is built.
    """
    chances = logits.detach().softmax(-1)  # (N, V)
    pull = chances.sqrt().mul_(signs)
    return pull.sub_(chances.mul_(pull.sum(-1, keepdim=True)))


def length_groups(lengths: Sequence[int], tokens: int, least: int) -> list[list[int]]:
    """Return the rows in groups of similar length, each of at most `tokens` padded tokens, as lists of row indices. A
    group always holds at least one row. There are at least `least` groups if there are enough rows.
    """
    most = max(len(lengths) // max(least, 1), 1)
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and len(groups[-1]) < most and lengths[row] * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


@contextmanager
def squared_into(sums: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within this block, add the square of each gradient to `sums` and free the gradient. This happens as soon as a
    backward pass has computed the gradient. Gradients that the parameters had before are restored at the end.
    """
    held = {name: parameter.grad for name, parameter in parameters.items()}

    def square(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            found = parameter.grad.to(sums[name].dtype)
            sums[name].addcmul_(found, found)
            parameter.grad = None

    with ExitStack() as hooks:
        for name, parameter in parameters.items():
            parameter.grad = None
            hooks.enter_context(parameter.register_post_accumulate_grad_hook(partial(square, name)))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.grad = held[name]
