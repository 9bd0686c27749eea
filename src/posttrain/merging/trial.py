"""How long a merge takes and how much memory: tried on a part of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from posttrain.merging.engine import Work
from posttrain.merging.plan import Plan
from posttrain.merging.sources import table_of
from posttrain.merging.stack import BLOCK

__all__ = ["Trial", "trial"]

TRIED_S = 1.0
"""Seconds of a trial, about."""


class Trial(NamedTuple):
    """wall_s: seconds that the whole merge takes, about; memory_bytes: of its blocks, or of whole matrices."""

    wall_s: float
    memory_bytes: int


def trial(plan: Plan, threads: int | None = None) -> Trial:
    """Merge a few tensors of middle size without writing them, and say what all of them take. Surveys of the whole
    model are counted as one more reading each.
    """
    merge = plan.merge
    jobs = sorted((job for job in merge.jobs if not job.copied), key=lambda job: merge.layout.slots[job.name].size)
    work = Work(merge, (), Path())
    began, done = time.perf_counter(), 0
    for job in jobs[len(jobs) // 2 :]:
        for raw in work.tried(job):
            done += raw.numel()
        if time.perf_counter() - began > TRIED_S:
            break
    each = (time.perf_counter() - began) / max(done, 1)
    cores = threads or os.cpu_count() or 1
    count = len(merge.models) + (merge.base is not None)
    largest = max((table_of(job.stored.shape) for job in jobs), key=lambda table: table[0] * table[1], default=(1, 1))
    numbers = largest[0] * largest[1] if merge.config.whole else max(BLOCK, largest[1])
    return Trial(each * plan.writes * (1 + merge.config.surveys) / cores, cores * (count + 2) * 4 * numbers)
