"""Cells handed out to processes of this machine (`--jobs`) or of a Ray cluster (`--on ray`).

Each process loads the study's models for itself and runs cells one after another, as a run in one process does; only
the orders go in, and results and progress come out. A cell is handed out when what it needs is done. The cell of a
process that was lost (killed, out of memory) is run again, and goes on where that one stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple, Protocol

import torch

from posttrain.config.change import Change
from posttrain.errors import MissingError, PosttrainError, Problem
from posttrain.exams.results import CellResult
from posttrain.models.meter import Doing, listening
from posttrain.studies.config import Resources, Study
from posttrain.studies.events import ExamEvent, Watcher
from posttrain.studies.exams import prepare_exams
from posttrain.studies.plan import Cell
from posttrain.studies.worker import CellWorker, Order, cell_folder, failed

__all__ = ["Handed", "Spec", "in_processes", "on_ray"]

TRIES = 3
"""So often a cell is handed out whose processes are lost."""
POLL_S = 0.1
TELL_S = 0.2
"""Steps and progress of a cell are told at most so often; its own files have them all."""


class Spec(NamedTuple):
    """What a process needs to run any cell of a study. changes: all of them; threads: of torch, as many as
    the run itself has, because sums over other parts differ in their last digits.
    """

    study: Study
    changes: tuple[Change, ...]
    base: Path
    folder: Path
    threads: int


class Told(NamedTuple):
    """Something that the process of a cell tells; what: a method of `Watcher`."""

    cell: Cell
    what: str
    value: Any


class Handed(NamedTuple):
    """A cell that came back, and how long it took."""

    order: Order
    result: CellResult
    wall_s: float


class Tell(Protocol):
    """A queue that events are put into."""

    def put(self, item: Told) -> None:
        """Add one."""


class Teller:
    """A watcher in a worker's process: sends everything to the process that hands cells out."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.cell: Cell | None = None
        self.last: dict[str, float] = {}

    def _send(self, what: str, value: Any, *, always: bool = False) -> None:
        now = time.monotonic()
        if self.cell is not None and (always or now - self.last.get(what, 0.0) >= TELL_S):
            self.last[what] = now
            self.tell.put(Told(self.cell, what, value))

    def turn(self, cell: Cell) -> None:
        self.cell = cell

    def say(self, line: str) -> None:
        self._send("say", line, always=True)

    def begins(self, event: Any) -> None:
        return None

    def ends(self, event: Any) -> None:
        return None

    def step(self, entry: Mapping[str, Any]) -> None:
        self._send("step", dict(entry))

    def exam(self, event: ExamEvent) -> None:
        self._send("exam", event)

    def doing(self, work: Doing) -> None:
        self._send("doing", work)


# ---- in a worker's process -------------------------------------------------------------------------------------------


@dataclass
class _Here:
    """The worker of this process."""

    folder: Path | None = None
    worker: CellWorker | None = None
    teller: Teller | None = None


_here = _Here()


def run_order(spec: Spec, order: Order, tell: Tell) -> tuple[CellResult, float]:
    """Run one cell in this process, with the models that it has loaded already."""
    if _here.worker is None or _here.teller is None or _here.folder != spec.folder:
        torch.set_num_threads(spec.threads)
        _here.teller = Teller(tell)
        _here.folder = spec.folder
        exams = prepare_exams(spec.study, spec.changes, spec.base)
        _here.worker = CellWorker(spec.study, exams, spec.base, spec.folder, _here.teller)
    _here.teller.turn(order.cell)
    began = time.monotonic()
    with listening(_here.teller.doing):
        if order.cell.model not in _here.worker.opened:
            _here.worker.open(order.cell.model).examiner.take_before(needed=True)  # its samples are there already
        return _here.worker.run(order), time.monotonic() - began


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ended; Ctrl-C reaches that one only."""
    os.setpgrp()
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait_for([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


# ---- handing out -----------------------------------------------------------------------------------------------------


class Pool(Protocol):
    """Runs orders somewhere."""

    def submit(self, spec: Spec, order: Order) -> Future[tuple[CellResult, float]]:
        """Begin; the future raises BrokenProcessPool where the process was lost."""

    def events(self) -> Iterator[Told]:
        """What was told since the last call."""

    def mend(self) -> None:
        """Make it usable again after a process was lost."""

    def stop(self) -> None:
        """Let every process save what it has and end."""


def handed_out(
    pool: Pool,
    spec: Spec,
    orders: Mapping[str, Callable[[], Order]],
    needs: Mapping[str, frozenset[str]],
    watcher: Watcher,
    at_once: int,
) -> Iterator[Handed]:
    """Results as they come. orders: makes the order of a cell once what it needs is done; needs: the cells among these
    that it waits for; both by folder. at_once: so many cells are handed out at a time.
    """
    waiting, tries = dict(orders), dict.fromkeys(orders, 0)
    running: dict[Future[tuple[CellResult, float]], Order] = {}
    done: set[str] = set()
    tell: dict[str, Callable[[Any], None]] = {
        "say": watcher.say,
        "step": watcher.step,
        "exam": watcher.exam,
        "doing": watcher.doing,
    }
    try:
        while waiting or running:
            ready = [folder for folder in waiting if needs[folder] <= done]
            for folder in ready[: at_once - len(running)]:
                order = waiting.pop(folder)()
                tries[folder] += 1
                running[pool.submit(spec, order)] = order
            finished, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for told in pool.events():
                watcher.turn(told.cell)
                tell[told.what](told.value)
            lost: list[Order] = []
            for future in finished:
                order = running.pop(future)
                try:
                    result, wall_s = future.result()
                except BrokenProcessPool:
                    lost.append(order)
                    continue
                done.add(order.cell.folder)
                yield Handed(order, result, wall_s)
            if lost:
                pool.mend()
            for order in lost:
                folder = order.cell.folder
                if tries[folder] < TRIES:
                    watcher.say(f"{order.cell}: its process was lost; the cell is handed out again")
                    waiting[folder] = lambda order=order: order._replace(again=False)  # type: ignore[misc]
                    continue
                done.add(folder)
                cause = f"its process was lost {TRIES} times (killed, or out of memory)"
                error = PosttrainError(Problem(str(order.cell), cause, "give it more memory, or fewer jobs"))
                at = cell_folder(spec.folder, order.cell)
                yield Handed(order, failed(order.cell, order.hashes.content, error, 0.0, at), 0.0)
    except BaseException:
        pool.stop()
        raise


class _Processes:
    """Processes of this machine."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.context = multiprocessing.get_context("spawn")
        self.manager = self.context.Manager()
        self.queue: Any = self.manager.Queue()
        self.pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.jobs, mp_context=self.context, initializer=_end_with_parent)

    def submit(self, spec: Spec, order: Order) -> Future[tuple[CellResult, float]]:
        return self.pool.submit(run_order, spec, order, self.queue)

    def events(self) -> Iterator[Told]:
        while True:
            try:
                yield self.queue.get_nowait()
            except Empty:
                return

    def mend(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self._new()

    def stop(self) -> None:
        for process in multiprocessing.active_children():
            if process.name.startswith("SpawnProcess"):
                process.terminate()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.manager.shutdown()


@contextmanager
def in_processes(jobs: int) -> Iterator[Pool]:
    """So many processes of this machine."""
    pool = _Processes(jobs)
    try:
        yield pool
    finally:
        pool.close()


class _Ray:
    """Tasks on Ray: each cell asks for the study's resources; Ray finds where they are."""

    def __init__(self, ray: Any, resources: Resources) -> None:
        from ray.util.queue import Queue

        self.ray = ray
        self.queue = Queue()
        asked = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": 0}
        self.remote = ray.remote(**asked)(run_order)

    def submit(self, spec: Spec, order: Order) -> Future[tuple[CellResult, float]]:
        reference = self.remote.remote(spec, order, self.queue)
        future: Future[tuple[CellResult, float]] = Future()
        future.set_running_or_notify_cancel()

        def fetch() -> None:
            from ray.exceptions import RayTaskError, WorkerCrashedError

            try:
                future.set_result(self.ray.get(reference))
            except WorkerCrashedError as error:
                lost = BrokenProcessPool("a Ray worker was lost")
                lost.__cause__ = error
                future.set_exception(lost)
            except RayTaskError as error:
                future.set_exception(error.cause)
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=fetch, daemon=True).start()
        return future

    def events(self) -> Iterator[Told]:
        yield from self.queue.get_nowait_batch(self.queue.qsize())

    def mend(self) -> None:
        """Ray starts another worker by itself."""

    def stop(self) -> None:
        """Shutting down stops every task."""


@contextmanager
def on_ray(address: str, resources: Resources) -> Iterator[Pool]:
    """A Ray cluster's address, or `local` for one that is started here and ends with the run. MissingError without ray.

    The run folder and the models must be where every node of the cluster finds them.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingError(Problem("ray", "is not installed", "pip install 'posttrain[ray]'")) from error
    local = {"include_dashboard": False, "num_cpus": os.cpu_count()}
    ray.init(**(local if address == "local" else {"address": address}), log_to_driver=False, logging_level="ERROR")
    try:
        yield _Ray(ray, resources)
    finally:
        ray.shutdown()
