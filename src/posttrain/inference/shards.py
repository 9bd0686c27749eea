"""Share requests among several GPUs or machines: `torchrun --nproc-per-node 4 -m posttrain exam ...`.

Process 0 runs the exam. Its respondent sends each call to the other processes, every process answers its own block of
the requests with its own copy of the model, and the parts are joined in order. Blocks are contiguous, so that prompts
that share a prefix stay together. Results are those of one process. Only process 0 writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from posttrain.errors import PosttrainError, Problem
from posttrain.inference.locations import among, located, location_of
from posttrain.inference.protocol import (
    Answer,
    Distributions,
    Generation,
    Prompt,
    Respondent,
    Scored,
    Told,
    Usage,
    Wrapper,
    nobody,
)

__all__ = ["ShardedRespondent", "block", "is_sharded", "sharing", "work"]

CHUNK = 512
"""Number of one process's requests between two gatherings, which a kill can lose."""

T = TypeVar("T")


def is_sharded() -> bool:
    """Return whether `torchrun` started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Return the index of this process."""
    return int(os.environ.get("RANK", "0"))


def block(n: int, index: int, of: int) -> range:
    """Return the indices below n for process `index` of `of`: contiguous, with sizes that differ by at most one."""
    return range(n * index // of, n * (index + 1) // of)


@contextmanager
def sharing() -> Iterator[None]:
    """Within this block, processes can send each other plain values (Gloo). Each has its own GPU if there is one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo")  # results are small Python values; tensors are not sent
    try:
        yield
    finally:
        dist.destroy_process_group()


def _share(value: list[Any]) -> list[Any]:
    """Return process 0's value in every process."""
    dist.broadcast_object_list(value, src=0)
    return value


def _own(inner: Respondent, method: str, items: Sequence[Any], settings: dict[str, Any]) -> list[Any]:
    """Return every process's part of a call, in order: its results, its problems and its usage so far. Raise
    PosttrainError if any process has problems."""
    own = block(len(items), dist.get_rank(), dist.get_world_size())
    mine = [items[i] for i in own]
    calls: dict[str, Any] = {"answers": inner.answers, "logprobs": inner.logprobs, "rolling": inner.rolling}
    failed: list[Problem] = []
    done: list[Any] = []
    try:
        with located(lambda number: str(own[number])):  # only process 0 knows the locations of texts
            done = calls[method](mine, **settings) if mine else []
    except PosttrainError as error:
        failed = [Problem(*problem) for problem in error.problems]
    except Exception as error:
        failed = [Problem("", f"{type(error).__name__}: {error}")]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (done, failed, inner.usage))
    problems = [_placed(problem, process) for process, (_, told, _) in enumerate(parts) for problem in told]
    if problems:
        raise PosttrainError(*problems)
    return parts


def _placed(problem: Problem, process: int) -> Problem:
    """Return a problem with the location of the text that it names by index, or else with the process it comes from."""
    if problem.location.isdecimal():
        return problem._replace(location=location_of("request", int(problem.location)))
    return Problem(f"process {process}", str(problem))


def work(inner: Respondent) -> None:
    """Answer process 0's calls until it sends the end signal."""
    _shared(inner)
    while True:
        call = _share([None])[0]
        if call is None:
            return
        with suppress(PosttrainError):  # process 0 has the same error and reports it
            _own(inner, *call)


class ShardedRespondent(Wrapper):
    """Process 0's respondent. The other processes do their share of every call by `work`. Sampled answers depend on the
    number of processes, because a row's random numbers depend on its index in its process's list.
    """

    def __init__(self, inner: Respondent) -> None:
        super().__init__(_shared(inner), inner.name)
        self.usage = Usage()

    def __enter__(self) -> ShardedRespondent:
        return self

    def __exit__(self, *_: object) -> None:
        _share([None])

    def _call(self, method: str, items: Sequence[Any], told: Told, **settings: Any) -> list[T]:
        results: list[T] = []
        size = CHUNK * dist.get_world_size()
        for start in range(0, len(items), size):
            chunk = list(items[start : start + size])
            _share([(method, chunk, settings)])
            with among(lambda number, start=start: start + number):  # type: ignore[misc]
                parts = _own(self.inner, method, chunk, settings)
            vars(self.usage).update(vars(sum((usage for _, _, usage in parts), Usage())))
            for one in (one for done, _, _ in parts for one in done):
                results.append(one)
                told(len(results) - 1, one)
        return results

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        sent = how._replace(on_answer=nobody, on_token=None)  # functions cannot be sent
        return self._call("answers", prompts, how.on_answer, **sent._asdict())

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        """Return how likely each continuation is after its prompt."""
        return self._call("logprobs", pairs, on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        """Return how likely whole texts are."""
        return self._call("rolling", texts, on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """Return process 0's own distributions: whole distributions are too large to send."""
        return self.inner.next_token_logprobs(prompts, answers)


def _shared(inner: Respondent) -> Respondent:
    """Return the respondent. Raise PosttrainError if its items cannot be shared among processes."""
    if inner.stateful:
        cause = "it adapts to each input in its order, so several processes cannot share the inputs"
        raise PosttrainError(Problem(inner.name, cause, "run it in one process, without torchrun"))
    return inner
