"""Gradients of many rows at once for the estimates whose draws have mean zero (see `curvature.py`).

With random signs (or draws from the model itself) the score of a row has mean zero and is independent of all other
rows'. So the cross terms vanish between rows as they do between positions:

    E[(sum_r g_r)^2] = sum_r E[g_r^2]            since E[g_r g_s] = E[g_r] E[g_s] = 0 for r != s

and the square of a whole batch's *summed* gradient is as unbiased as the sum of the rows' squares, at the cost of a
training step. The price is variance: an entry measured on n squares has a relative standard deviation of about sqrt(2 /
n). (For *labels* this does not hold, since their scores do not have mean zero.) Each gradient is squared, added and
freed as soon as it is computed, so that those of all parameters are never in memory together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

__all__ = ["length_groups", "sign_pull", "squared_into"]


def sign_pull(logits: Tensor, signs: Tensor) -> Tensor:
    """The gradient with respect to the logits of sum_v e_v sqrt(p_v) log p_v, sqrt(p) held fixed: w - p sum(w) with
    w = e sqrt(p). logits, signs: (N, V); made without a graph."""
    chances = logits.detach().softmax(-1)  # (N, V)
    pull = chances.sqrt().mul_(signs)
    return pull.sub_(chances.mul_(pull.sum(-1, keepdim=True)))


def length_groups(lengths: Sequence[int], tokens: int, least: int) -> list[list[int]]:
    """Rows in groups of similar length of at most `tokens` padded tokens (but one row); `least` groups at least, if
    possible."""
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
    """Within this, the square of each gradient is added to `sums`, and the gradient freed, once a backward pass has
    computed it. Gradients that the parameters had before are restored."""
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
