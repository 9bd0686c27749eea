"""Seconds of training and of exams, from a model's parameters and this machine's measured speed.

Apart from `estimate.py`, so that a dry run that needs no plan of a study does not import what trains (a second).
"""

from __future__ import annotations

import time

from posttrain.errors import MissingError, Problem
from posttrain.models.load import config_of

__all__ = ["ANSWER_TOKENS", "EFFICIENCY", "exam_s", "flops_per_s", "parameters_of", "training_s"]

STEP_OVERHEAD_S = 0.02
"""Seconds per optimiser step beside the arithmetic: Python, the optimiser's small kernels (pocket, 2 cores)."""
TOKEN_OVERHEAD_S = 0.004
"""Seconds per generated token of one batch, beside the arithmetic."""
ANSWER_TOKENS = 24
"""The assumed length of an answer, in tokens."""
EFFICIENCY = 0.4
"""The share of a large matrix product's speed that training reaches (0 to 1)."""


def flops_per_s() -> float:
    """Measure the machine's speed with a square matrix product in float32; return the best of five, after a warm-up.

    The unit is operations per second. The size is 4096 on a GPU and 1024 on a CPU, so that arithmetic dominates: a
    product of size 512 takes one or two milliseconds, most of it to start threads, and reached only a third of the
    speed of a model's own products on two busy cores.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device)
    best = 1e9
    a @ a
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def training_s(parameters: int, tokens: int, steps: int, speed: float) -> float:
    """Return the seconds that training on `tokens` tokens in `steps` steps takes. speed: from `flops_per_s`."""
    return 6 * parameters * tokens / (speed * EFFICIENCY) + steps * STEP_OVERHEAD_S


def exam_s(parameters: int, tokens: int, calls: int, speed: float) -> float:
    """Return the seconds for reading and writing `tokens` tokens in `calls` batches of answers."""
    return 2 * parameters * tokens / (speed * EFFICIENCY) + calls * ANSWER_TOKENS * TOKEN_OVERHEAD_S + 0.1


def parameters_of(model: str, *, download: bool = False, trust_remote_code: bool = False) -> int:
    """Return the number of a model's parameters, from its configuration, without reading weights. Raise MissingError if
    there is no configuration here or in the hub's cache.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        config = config_of(model, offline=not download, trust_remote_code=trust_remote_code)
    except OSError as error:
        mend = "--download allows fetching it; a study runs on an adapter folder, but its size is not guessed"
        raise MissingError(Problem(model, "no config.json here or in the hub's cache", mend)) from error
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sum(p.numel() for p in empty.parameters())
