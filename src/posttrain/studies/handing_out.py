"""Cells handed out: in this process, to others of this machine (`--jobs`), to those of a Ray cluster (`--on ray`).

Each other process loads the study's models for itself and runs cells one after another, as a run in one process does;
only the orders go in, and results and progress come out. A cell is handed out when what it needs is done. The cell of a
process that was lost (killed, out of memory) is run again, and goes on where that one stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import torch

from posttrain.config.change import Change
from posttrain.errors import Interrupted, MissingError, PosttrainError, Problem
from posttrain.exams.results import CellResult
from posttrain.models.meter import Doing, listening
from posttrain.studies.config import Resources, Study
from posttrain.studies.events import ExamEvent, Watcher
from posttrain.studies.exams import prepare_exams
from posttrain.studies.plan import Cell
from posttrain.studies.worker import CellWorker, Order, cell_folder, failed

__all__ = ["Handed", "Here", "Pool", "Spec", "handed_out", "in_processes", "on_ray"]

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

    cell: Cell
    result: CellResult
    wall_s: float


Ran = Future[tuple[CellResult, float]]
"""What a cell has come to, and its seconds; BrokenProcessPool where its process was lost."""


class Teller(Watcher):
    """A watcher in a worker's process: sends everything to the process that hands cells out. tell: the queue for it."""

    def __init__(self, tell: Any) -> None:
        self.tell = tell
        self.cell: Cell | None = None
        self.last: dict[str, float] = {}

    def _send(self, what: str, value: Any) -> None:
        now = time.monotonic()
        if self.cell is not None and (what == "say" or now - self.last.get(what, 0.0) >= TELL_S):
            self.last[what] = now
            self.tell.put(Told(self.cell, what, value))

    def turn(self, cell: Cell) -> None:
        self.cell = cell

    def say(self, line: str) -> None:
        self._send("say", line)

    def step(self, entry: Mapping[str, Any]) -> None:
        self._send("step", dict(entry))

    def exam(self, event: ExamEvent) -> None:
        self._send("exam", event)

    def doing(self, work: Doing) -> None:
        self._send("doing", work)


# ---- in a worker's process -------------------------------------------------------------------------------------------


_workers: dict[Path, CellWorker] = {}
"""The worker of this process, by the run's folder."""


def run_order(spec: Spec, order: Order, tell: Any) -> tuple[CellResult, float]:
    """Run one cell in this process, with the models that it has loaded already. tell: a queue for what happens."""
    if spec.folder not in _workers:
        _workers.clear()
        torch.set_num_threads(spec.threads)
        exams = prepare_exams(spec.study, spec.changes, spec.base)
        _workers[spec.folder] = CellWorker(spec.study, exams, spec.base, spec.folder, Teller(tell))
    worker = _workers[spec.folder]
    worker.watcher.turn(order.cell)
    began = time.monotonic()
    with listening(worker.watcher.doing):
        if order.cell.model not in worker.opened:
            worker.open(order.cell.model).examiner.take_before(needed=True)  # its samples are there already
        try:
            return worker.run(order), time.monotonic() - began
        except Interrupted:  # a signal to this process, whose training is saved: the cell is not over, nor is the run
            os._exit(Interrupted.exit_code)


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


class Pool(ABC):
    """Runs orders somewhere."""

    queue: Any
    """For what its processes tell."""

    @abstractmethod
    def submit(self, spec: Spec, order: Order) -> Ran:
        """Begin."""

    def events(self) -> Iterator[Told]:
        """What was told since the last call."""
        with suppress(Empty):
            while True:
                yield self.queue.get_nowait()

    def mend(self, lost: Ran) -> None:
        """Make it usable again after the process of an order was lost."""
        return

    def stop(self) -> None:
        """Let every process save what it has and end."""
        return


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
    running: dict[Ran, Order] = {}
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
            for future in finished:
                order = running.pop(future)
                folder = order.cell.folder
                try:
                    result, wall_s = future.result()
                except BrokenProcessPool:
                    pool.mend(future)
                    if tries[folder] < TRIES:
                        watcher.say(f"{order.cell}: its process was lost; the cell is handed out again")
                        waiting[folder] = partial(order._replace, again=False)
                        continue
                    cause = f"its process was lost {TRIES} times (killed, or out of memory)"
                    error = PosttrainError(Problem(str(order.cell), cause, "give it more memory, or fewer jobs"))
                    at, wall_s = cell_folder(spec.folder, order.cell), 0.0
                    result = failed(order.cell, order.hashes.content, error, wall_s, at)
                done.add(folder)
                yield Handed(order.cell, result, wall_s)
    except BaseException:
        pool.stop()
        raise


class Here(Pool):
    """This process, which runs an order while it is submitted."""

    def __init__(self, worker: CellWorker) -> None:
        self.worker = worker

    def submit(self, spec: Spec, order: Order) -> Ran:
        future: Ran = Future()
        began = time.monotonic()
        future.set_result((self.worker.run(order), time.monotonic() - began))
        return future

    def events(self) -> Iterator[Told]:
        return iter(())


class _Processes(Pool):
    """Processes of this machine."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.context = jobs, multiprocessing.get_context("spawn")
        self.manager = self.context.Manager()
        self.queue = self.manager.Queue()
        self.pool, self.ran = self._new(), set[Ran]()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.jobs, mp_context=self.context, initializer=_end_with_parent)

    def submit(self, spec: Spec, order: Order) -> Ran:
        future = self.pool.submit(run_order, spec, order, self.queue)
        self.ran.add(future)
        return future

    def mend(self, lost: Ran) -> None:
        if lost not in self.ran:
            return  # of former processes: with one of them all were lost, and there are new ones already
        self.pool.shutdown(cancel_futures=True)  # waits: none may write to a cell's folder that is handed out again
        self.pool, self.ran = self._new(), set()

    def stop(self) -> None:
        for process in multiprocessing.active_children():
            if process.name.startswith("SpawnProcess"):
                process.terminate()


@contextmanager
def in_processes(jobs: int) -> Iterator[Pool]:
    """So many processes of this machine."""
    pool = _Processes(jobs)
    try:
        yield pool
    finally:
        pool.pool.shutdown(cancel_futures=True)
        pool.manager.shutdown()


class _Ray(Pool):
    """Tasks on Ray: each cell asks for the study's resources; Ray finds where they are."""

    def __init__(self, ray: Any, resources: Resources) -> None:
        from ray.util.queue import Queue

        self.ray, self.queue = ray, Queue()
        asked = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": 0}
        self.remote = ray.remote(**asked)(run_order)

    def submit(self, spec: Spec, order: Order) -> Ran:
        reference = self.remote.remote(spec, order, self.queue)
        future: Ran = Future()
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

        threading.Thread(target=fetch, daemon=True).start()  # an executor's threads would be waited for at the end
        return future


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
