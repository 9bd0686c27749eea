"""Several GPUs or machines: `torchrun --nproc-per-node 4 -m posttrain exam ...` shares the requests out.

Process 0 runs the exam as always; its respondent sends each call to the others, every process answers its own block of
the requests with its own copy of the model, and the parts are put together in order. Blocks are contiguous, so that
prompts that share a prefix stay together. Results are those of one process; only process 0 writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from typing import Any, TypeVar

from posttrain.errors import PosttrainError, Problem
from posttrain.inference.places import among, place_of, placed
from posttrain.inference.protocol import Answer, Distributions, Prompt, Respondent, Scored, Usage

__all__ = ["ShardedRespondent", "block", "is_sharded", "sharing", "work"]

CHUNK = 512
"""Requests of one process between two gatherings: what a kill can lose."""

T = TypeVar("T")


def is_sharded() -> bool:
    """Whether `torchrun` started several of us."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Which of them this process is."""
    return int(os.environ.get("RANK", "0"))


def block(n: int, index: int, of: int) -> range:
    """The numbers below n that process `index` of `of` takes: contiguous, sizes differing by one at most."""
    return range(n * index // of, n * (index + 1) // of)


@contextmanager
def sharing() -> Iterator[None]:
    """Processes that can talk to each other: NCCL for the GPU of each and Gloo for plain values."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo")  # results are small Python values; tensors stay where they are
    try:
        yield
    finally:
        dist.destroy_process_group()


def _share(value: list[Any]) -> list[Any]:
    """Process 0's value, in every process."""
    import torch.distributed as dist

    dist.broadcast_object_list(value, src=0)
    return value


def _together(part: Any) -> list[Any]:
    """Every process's part, in every process, in order."""
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def _own(inner: Respondent, method: str, items: Sequence[Any], settings: dict[str, Any]) -> list[Any]:
    """This process's part of a call: its results, or what failed as text, and what it has spent in all."""
    import torch.distributed as dist

    own = block(len(items), dist.get_rank(), dist.get_world_size())
    mine = [items[i] for i in own]
    calls: dict[str, Callable[..., list[Any]]] = {
        "answers": inner.answers,
        "logprobs": inner.logprobs,
        "rolling": inner.rolling,
    }
    failed: list[Problem] = []
    done: list[Any] = []
    try:
        with placed(lambda number: str(own[number])):  # what the text is called, process 0 alone knows
            done = calls[method](mine, **settings) if mine else []
    except PosttrainError as error:
        failed = [Problem(*problem) for problem in error.problems]
    except Exception as error:
        failed = [Problem("", f"{type(error).__name__}: {error}")]
    parts = _together((done, failed, asdict(inner.usage)))
    problems = [_placed(problem, process) for process, (_, told, _) in enumerate(parts) for problem in told]
    if problems:
        raise PosttrainError(*problems)
    return parts


def _placed(problem: Problem, process: int) -> Problem:
    """With the location of the text whose number it has; of another fault, with that of the process."""
    if problem.location.isdecimal():
        return problem._replace(location=place_of("request", int(problem.location)))
    return Problem(f"process {process}", str(problem))


def work(inner: Respondent) -> None:
    """Answer process 0's calls until it says that it is done."""
    while True:
        call = _share([None])[0]
        if call is None:
            return
        with suppress(PosttrainError):  # process 0 has the same error, and says it
            _own(inner, *call)


class ShardedRespondent:
    """Process 0's respondent: the others' share of every call is done by `work`."""

    def __init__(self, inner: Respondent) -> None:
        self.inner = inner
        self.name = inner.name
        self.fingerprint = inner.fingerprint
        self._usage = Usage()

    def __enter__(self) -> ShardedRespondent:
        return self

    def __exit__(self, *_: object) -> None:
        _share([None])

    @property
    def usage(self) -> Usage:
        """What all processes have spent."""
        return self._usage

    def _call(
        self, method: str, items: Sequence[Any], told: Callable[[int, T], None] | None, **settings: Any
    ) -> list[T]:
        import torch.distributed as dist

        results: list[T] = []
        size = CHUNK * dist.get_world_size()
        for start in range(0, len(items), size):
            chunk = list(items[start : start + size])
            _share([(method, chunk, settings)])
            with among(lambda number, start=start: start + number):  # type: ignore[misc]
                parts = _own(self.inner, method, chunk, settings)
            self._usage = _sum([Usage(**usage) for _, _, usage in parts])
            for one in (one for done, _, _ in parts for one in done):
                results.append(one)
                if told is not None:
                    told(len(results) - 1, one)
        return results

    def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in order. Sampled ones differ from those of another number of processes: a row's
        random numbers go by its place in its process's list.
        """
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "stop": stop}
        return self._call("answers", prompts, on_answer, **settings)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The texts of `answers`."""
        said = self.answers(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return [answer.text for answer in said]

    def logprobs(
        self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Callable[[int, Scored], None] | None = None
    ) -> list[Scored]:
        """How likely each continuation is after its prompt."""
        return self._call("logprobs", pairs, on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Callable[[int, Scored], None] | None = None) -> list[Scored]:
        """How likely whole texts are."""
        return self._call("rolling", texts, on_scored)

    def next_token_logprobs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Distributions] | None:
        """Whole distributions are too large to send: process 0 computes them alone."""
        return self.inner.next_token_logprobs(prompts, answers)


def _sum(parts: Sequence[Usage]) -> Usage:
    """Counts added up; the reason for a plain path is the same in all."""
    total = Usage(plain_reason=next((part.plain_reason for part in parts if part.plain_reason), ""))
    for part in parts:
        for field in fields(Usage):
            if field.name != "plain_reason":
                setattr(total, field.name, getattr(total, field.name) + getattr(part, field.name))
    return total
