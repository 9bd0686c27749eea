"""Run a merge that is planned: threads read blocks of rows, merge them in float32 and write them where they belong.

Each thread takes one tensor at a time, the largest first. Memory is a few blocks for each thread, whatever the size of
the model; only methods that need a whole matrix (`iso_c`, ...) hold one. Numbers are rounded once, when they are
written. Finished tensors are noted in a journal, so a merge that was stopped goes on with the others.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from posttrain import registry
from posttrain.errors import PosttrainError, Problem
from posttrain.merging.layout import Layout, lay_out
from posttrain.merging.sources import KINDS, MemoryModel, Source, table_of
from posttrain.merging.stack import Block, Stack, block_rows
from posttrain.merging.values import Place, place_of
from posttrain.models.meter import Meter
from posttrain.models.tensors import SIZES, Stored

__all__ = ["JOURNAL", "Job", "Merge", "Work", "in_memory", "run"]

JOURNAL = "merge-journal.jsonl"
FLUSH = 1 << 28
"""Bytes that are written before the disk is asked to store them and the journal says so."""
KEPT = "what is written is kept, and the same command goes on"

Tensors = dict[str, Tensor]


class Job(NamedTuple):
    """One tensor of the merged model. stored: its type and shape there; place: its name and depth; copied: it is taken
    from the first source as it is, as all have it alike.
    """

    name: str
    stored: Stored
    place: Place
    copied: bool = False


class Merge(NamedTuple):
    """A merge that is ready to run. models: name -> source, without the base; base: None for methods without; method:
    the function of the kind, with its configuration; jobs: the tensors in the order of the files; digest: of all that
    decides the result, for going on.
    """

    models: Mapping[str, Source]
    base: Source | None
    method: Callable[[Any, Stack], Callable[[Block], Tensor]]
    config: Any
    jobs: Sequence[Job]
    layout: Layout
    seed: int = 0
    digest: str = ""


class _Buffers(threading.local):
    """The blocks of a thread: they are used again for every block."""

    def __init__(self) -> None:
        self.stack = torch.empty(0)
        self.out = torch.empty(0, dtype=torch.uint8)

    def floats(self, count: int, rows: int, columns: int) -> Tensor:
        size = count * rows * columns
        if self.stack.numel() < size:
            self.stack = torch.empty(size)
        return self.stack[:size].view(count, rows, columns)

    def bytes(self, size: int) -> Tensor:
        if self.out.numel() < size:
            self.out = torch.empty(size, dtype=torch.uint8)
        return self.out[:size]


def run(merge: Merge, folder: Path, *, threads: int | None = None) -> None:
    """Fill the files of a layout, which lie in the folder. threads: as many as the processor has when left out. Raise
    PosttrainError for a number that is none, with the model, the tensor and the row; nothing is undone then.
    """
    done = _journal(folder, merge.digest)
    handles = [os.open(folder / file.name, os.O_WRONLY) for file in merge.layout.files]
    work = Work(merge, handles, folder / JOURNAL)
    jobs = sorted((job for job in merge.jobs if job.name not in done), key=work.size, reverse=True)
    total = sum(map(work.size, merge.jobs))
    try:
        already = (total - sum(map(work.size, jobs))) >> 20
        with Meter("merging", total >> 20, "MiB", kept=KEPT, already=already) as meter, _alone():
            work.tell = meter.more
            work.survey(threads or os.cpu_count() or 1)
            try:
                _all(work.job, jobs, threads or os.cpu_count() or 1)
            finally:  # also when it is stopped: what is finished is not computed again
                work.flush()
    finally:
        for handle in handles:
            os.close(handle)


def in_memory(models: Mapping[str, Mapping[str, Tensor]], base: str | None, config: Any, *, seed: int = 0) -> Tensors:
    """Return the merged tensors of models that are in memory, by the same code. base: the name of the one that is the
    base, None without; config: of a method. All tensors have the types and shapes of the first model's.
    """
    sources = {name: MemoryModel(tensors) for name, tensors in models.items()}
    first = next(iter(sources.values())).tensors
    places = place_of(list(first))
    jobs = [Job(name, stored, places[name]) for name, stored in first.items()]
    function = registry.load("merger", config.kind).function
    others = {name: source for name, source in sources.items() if name != base}
    merge = Merge(others, None if base is None else sources[base], function, config, jobs, lay_out(first), seed)
    work = Work(merge, (), Path())
    with _alone():
        work.survey(1)
        nothing = torch.empty(0, dtype=torch.uint8)
        return {
            job.name: torch.cat([nothing, *(raw.clone() for raw in work.merged(job))])
            .view(KINDS[job.stored.dtype])
            .view(job.stored.shape)
            for job in jobs
        }


def _journal(folder: Path, digest: str) -> set[str]:
    """Return the tensors that an earlier run of the same merge has written; begin a journal for a new one."""
    path = folder / JOURNAL
    *lines, torn = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    if lines and json.loads(lines[0]) == digest:
        if torn:  # the machine lost power while this line was written
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return {name for line in lines[1:] for name in json.loads(line)}
    path.write_text(json.dumps(digest) + "\n", encoding="utf-8")
    return set()


@contextmanager
def _alone() -> Iterator[None]:
    """Within this block each of our threads computes by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _all(function: Callable[[Job], Any], jobs: Sequence[Job], threads: int) -> None:
    """Run a function over jobs in threads. The first error ends it."""
    with ThreadPoolExecutor(min(threads, max(len(jobs), 1))) as pool:
        waiting = [pool.submit(function, job) for job in jobs]
        try:
            wait(waiting, return_when=FIRST_EXCEPTION)
            for one in waiting:
                one.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _each(function: Callable[[Job], Any], jobs: Sequence[Job], threads: int) -> Iterator[Any]:
    """Run a function over jobs in threads, and yield what it returns, in their order, as soon as it is known. So none
    of it is held for longer than the one who takes it wants."""
    with ThreadPoolExecutor(min(threads, max(len(jobs), 1))) as pool:
        waiting = deque(pool.submit(function, job) for job in jobs)
        try:
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class Work:
    """What the threads of a merge share."""

    def __init__(self, merge: Merge, handles: Sequence[int], journal: Path) -> None:
        self.merge, self.handles, self.journal = merge, handles, journal
        self.buffers = _Buffers()
        self.lock = threading.Lock()
        self.unflushed: list[str] = []
        self.pending = 0
        self.told = 0
        self.tell: Callable[[int], None] = lambda done: None
        self.surveyed: Any = None

    def size(self, job: Job) -> int:
        """The bytes of a tensor in the merged model."""
        return self.merge.layout.slots[job.name].size

    def survey(self, threads: int) -> None:
        """Let the method read all tensors as often as it wants before any is merged."""
        every = [job for job in self.merge.jobs if not job.copied]
        for number in range(self.merge.config.surveys):
            parts = _each(lambda job, n=number: self._surveyed(job, n), every, threads)  # type: ignore[misc]
            self.surveyed = self.merge.config.surveyed(number, parts, self.surveyed)

    def _surveyed(self, job: Job, number: int) -> Any:
        with torch.inference_mode(), self._named(job):
            return self.merge.config.survey(number, self.stack(job), self.surveyed)

    def job(self, job: Job) -> None:
        """Write one tensor."""
        with torch.inference_mode():
            if job.copied:
                self._copy(job)
            else:
                self._merge(job)
        self._finished(job)

    def stack(self, job: Job) -> Stack:
        """Return what the method sees of a tensor."""
        rows, columns = table_of(job.stored.shape)
        merge = self.merge
        count = len(merge.models) + (merge.base is not None)

        def read(first: int, number: int) -> Block:
            floats = self.buffers.floats(count, number, columns)
            base = floats[0] if merge.base is not None else None
            models = floats[count - len(merge.models) :]
            if merge.base is not None:
                merge.base.rows(job.name, first, floats[0])
            for model, own in zip(merge.models.values(), models, strict=True):
                model.rows(job.name, first, own)
            return Block(first, base, models)

        return Stack(
            place=job.place,
            shape=job.stored.shape,
            rows=rows,
            columns=columns,
            models=tuple(merge.models),
            read=read,
            has_base=merge.base is not None,
            seed=merge.seed,
            survey=self.surveyed,
        )

    def _merge(self, job: Job) -> None:
        slot = self.merge.layout.slots[job.name]
        at = slot.start
        for raw in self.merged(job):
            _write(self.handles[slot.file], raw, at)
            at += raw.numel()
            self._more(raw.numel())

    def tried(self, job: Job) -> Iterator[Tensor]:
        """Do the same for a trial, in which nothing else is surveyed."""
        with _alone():
            for number in range(self.merge.config.surveys):
                self.surveyed = self.merge.config.surveyed(number, [self._surveyed(job, number)], self.surveyed)
            yield from self.merged(job)
            self.surveyed = None

    def merged(self, job: Job) -> Iterator[Tensor]:
        """Yield the bytes of the merged tensor, block by block. They hold until the next block."""
        stack = self.stack(job)
        with self._named(job):
            apply = self.merge.method(self.merge.config, stack)
        for block in stack.blocks():
            with self._named(job):
                merged = apply(block)
            out = self.buffers.bytes(merged.numel() * SIZES[job.stored.dtype])
            rounded = out.view(KINDS[job.stored.dtype]).view(merged.shape)
            rounded.copy_(merged)
            if not torch.isfinite(rounded.sum(dtype=torch.float32)):
                self._find(job, block.first, merged, rounded)
            yield out

    def _find(self, job: Job, first: int, merged: Tensor, rounded: Tensor) -> None:
        """Raise PosttrainError for a number that is none, or too large for the type; return if the sum alone was."""
        wrong = (~torch.isfinite(rounded)).nonzero()
        if not len(wrong):
            return
        if torch.isfinite(merged).all():
            row, column = first + int(wrong[0, 0]), int(wrong[0, 1])
            number, kind = float(merged[tuple(wrong[0])]), str(rounded.dtype).removeprefix("torch.")
            cause = f"{number:g} in {job.name}, {_where(job, row, column)}, is too large for {kind}"
            raise PosttrainError(Problem("dtype", cause, "store it as bfloat16 or float32"))
        self._blame(job)
        cause = f"the merged {job.name} has numbers that are none, and no model has"
        raise PosttrainError(Problem("", cause, "choose smaller weights"))

    @contextmanager
    def _named(self, job: Job) -> Iterator[None]:
        """If a method cannot go on with numbers that are none, raise PosttrainError that says whose they are."""
        try:
            yield
        except RuntimeError:  # of torch, such as a decomposition that does not converge
            self._blame(job)
            raise

    def _blame(self, job: Job) -> None:
        """Raise PosttrainError that names the first number of a model that is none; return if there is none."""
        rows, columns = table_of(job.stored.shape)
        step = block_rows(rows, columns)
        named = {**({} if self.merge.base is None else {"the base": self.merge.base}), **self.merge.models}
        for name, source in named.items():
            for first in range(0, rows, step):
                own = torch.empty(min(step, rows - first), columns)
                source.rows(job.name, first, own)
                if len(wrong := (~torch.isfinite(own)).nonzero()):
                    row, column = wrong[0].tolist()
                    cause = f"{name} has {float(own[row, column])} in {job.name}, {_where(job, first + row, column)}"
                    raise PosttrainError(Problem("", cause, "take a copy of this model that is whole"))

    def _copy(self, job: Job) -> None:
        """Write a tensor that is not merged, after a look whether it is the same in all models."""
        slot = self.merge.layout.slots[job.name]
        first, *others = [*([self.merge.base] if self.merge.base else []), *self.merge.models.values()]
        rows, columns = table_of(job.stored.shape)
        step = block_rows(rows, columns)
        at = slot.start
        for row in range(0, rows, step):
            count = min(step, rows - row) * columns
            raw = _raw(first, job.name, row * columns, count).clone()
            for other in others:
                if not torch.equal(_raw(other, job.name, row * columns, count), raw):
                    cause = f"{job.name} ({job.stored.dtype}) cannot be merged, and differs between the models"
                    raise PosttrainError(Problem("", cause, "take models with the same one"))
            _write(self.handles[slot.file], raw, at)
            at += raw.numel()
            self._more(raw.numel())

    def _more(self, size: int) -> None:
        """Count bytes that were written."""
        with self.lock:
            self.pending += size
            done = self.pending >> 20
            if done > self.told:
                self.tell(done - self.told)
                self.told = done

    def _finished(self, job: Job) -> None:
        with self.lock:
            self.unflushed.append(job.name)
            due = sum(self.merge.layout.slots[name].size for name in self.unflushed) >= FLUSH
        if due:
            self.flush()

    def flush(self) -> None:
        """Ask the disk to store what was written, and note it in the journal."""
        with self.lock:
            names, self.unflushed = self.unflushed, []
        for handle in self.handles:
            os.fdatasync(handle)
        with self.lock, self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(names) + "\n")


def _where(job: Job, row: int, column: int) -> str:
    return f"row {row:,}, column {column:,}" if len(job.stored.shape) > 1 else f"number {column:,}"


def _raw(source: Source, name: str, first: int, count: int) -> Tensor:
    """Return bytes of a tensor that is not merged. Only models in files have such tensors."""
    found: Tensor = cast("Any", source).raw(name, first, count)
    return found


def _write(handle: int, data: Tensor, at: int) -> None:
    """Write bytes at their place."""
    numbers: Any = data.numpy()
    view = memoryview(numbers)
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done
