"""What a study will cost, before it is run: tokens, disk and time, from its plan alone.

Arithmetic is counted (2 operations per parameter and token forwards, 6 for forwards and backwards; Kaplan et al. 2020,
arXiv:2001.08361, section 2.1) and divided by the speed of one measured matrix product; a small model's time is mostly
overhead, which is added per step and per generated token. A guess within a factor of three; once cells have run, the
time left is told from theirs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.errors import MissingError, Problem
from posttrain.models.load import load_tokenizer
from posttrain.models.names import resolve
from posttrain.studies.config import Study
from posttrain.studies.plan import Cell

__all__ = ["Estimate", "estimate"]

STEP_OVERHEAD_S = 0.02
"""Per optimiser step, beside the arithmetic: Python, the optimiser's small kernels (pocket, 2 cores)."""
TOKEN_OVERHEAD_S = 0.004
"""Per generated token of one batch."""
ANSWER_TOKENS = 24
"""A guess at an answer's length."""
EFFICIENCY = 0.4
"""Share of a large matrix product's speed that training reaches."""


class Estimate(NamedTuple):
    """trained_tokens, examined_tokens: processed in all cells; disk_gib: written; wall_s: rough."""

    trained_tokens: int
    examined_tokens: int
    disk_gib: float
    wall_s: float


def flops_per_s() -> float:
    """Measured on the spot: a square matrix product, in float32 on a CPU, the best of three."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 512
    a = torch.randn(size, size, device=device)
    best = 1e9
    for _ in range(3):
        began = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def parameters_of(model: str, *, download: bool = False, trust_remote_code: bool = False) -> int:
    """Parameters of a model, from its configuration (no weights are read). MissingError when it has none here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(
            resolve(model), local_files_only=not download, trust_remote_code=trust_remote_code
        )
    except OSError as error:
        mend = "--download allows fetching it; a study runs on an adapter folder, but its size is not guessed"
        raise MissingError(Problem(model, "no config.json here or in the hub's cache", mend)) from error
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sum(p.numel() for p in empty.parameters())


def estimate(study: Study, cells: Sequence[Cell]) -> Estimate:
    """Tokens, disk and time of these cells."""
    speed = flops_per_s()
    trained = examined = 0
    disk_bytes = wall_s = 0.0
    sizes: dict[str, tuple[int, float]] = {}
    for cell in cells:
        if cell.model not in sizes:
            trust = study.trust_remote_code
            tokenizer = load_tokenizer(cell.model, offline=not study.download, trust_remote_code=trust)
            questions = [q.question for other in cells[:200] for _, _, q in other.change.probes()]
            sample = questions[:500]
            tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False)["input_ids"])
            per_character = tokens / max(sum(map(len, sample)), 1)
            sizes[cell.model] = (
                parameters_of(cell.model, download=study.download, trust_remote_code=trust),
                per_character,
            )
        parameters, per_character = sizes[cell.model]
        probes = [question.question for _, _, question in cell.change.probes()]
        asked = round(sum(map(len, probes)) * per_character) + len(probes) * ANSWER_TOKENS
        examined += 2 * asked
        wall_s += 2 * 2 * parameters * asked / (speed * EFFICIENCY) + 2 * ANSWER_TOKENS * TOKEN_OVERHEAD_S + 0.2
        new = round(sum(len(t.question + t.answer[0]) for t in cell.change.target) * per_character) + 16
        work = cell.method.work(new)
        trained += work.tokens
        wall_s += 6 * parameters * work.tokens / (speed * EFFICIENCY) + work.steps * STEP_OVERHEAD_S
        disk_bytes += 1000 * len(probes) + 300 * work.steps
        if work.steps and study.keep != "none":
            disk_bytes += 4 * parameters
    return Estimate(trained, examined, disk_bytes / 2**30, wall_s)
