"""Hand out cells: to this process, to other processes of this machine (`--jobs`), to a Ray cluster (`--on ray`).

Each other process loads the study's models itself and runs cells one after another, as a run in one process does. It
receives only orders, and sends results and progress. A cell is handed out when the cells that it needs are done. If a
process is lost (killed, out of memory), its cell is run again and continues where that process stopped.
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
from multiprocessing.managers import SyncManager
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
from posttrain.studies.orphans import end_with_parent
from posttrain.studies.plan import Cell
from posttrain.studies.worker import CellWorker, Order, cell_folder, failed

__all__ = ["Handed", "Here", "Pool", "Spec", "handed_out", "in_processes", "on_ray"]

TRIES = 3
"""A cell is given up after this many lost processes."""
POLL_S = 0.1
"""Seconds between two looks for results and events."""
TELL_S = 0.2
"""Least seconds between two events of one kind and one cell that a process sends, but lines for the user are always
sent. The cell's own files have all of them.
"""


class Spec(NamedTuple):
    """What a process needs to run any cell of a study.

    changes: all changes of the study; base: the folder of the study file; folder: the run folder; threads: the number
    of torch's threads, the same as in the run itself, because it decides the last digits of sums.
    """

    study: Study
    changes: tuple[Change, ...]
    base: Path
    folder: Path
    threads: int


class Told(NamedTuple):
    """An event from the process of a cell. what: a method of `Watcher`; value: its argument."""

    cell: Cell
    what: str
    value: Any


class Handed(NamedTuple):
    """A finished cell, its result and its time in seconds."""

    cell: Cell
    result: CellResult
    wall_s: float


Ran = Future[tuple[CellResult, float]]
"""A cell's result and its seconds. It raises BrokenProcessPool if the cell's process was lost."""


class Teller(Watcher):
    """The watcher in a worker's process. It sends events to the process that hands out cells. tell: the queue."""

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
        self.cell, self.last = cell, {}

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
    """Run one cell in this process and return its result and its seconds. tell: the queue for events. A model that this
    process has loaded already is used again.
    """
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
            worker.open(order.cell.model).examiner.take_before(needed=True)  # reads the samples in the folder
        try:
            return worker.run(order), time.monotonic() - began
        except Interrupted:  # a signal to this process alone: its training is saved, and neither cell nor run is over
            os._exit(Interrupted.exit_code)


# ---- handing out -----------------------------------------------------------------------------------------------------


class Pool(ABC):
    """The base class of everything that runs orders."""

    queue: Any
    """The queue for the events of its processes."""

    @abstractmethod
    def submit(self, spec: Spec, order: Order) -> Ran:
        """Start an order and return the future of its result."""

    def events(self) -> Iterator[Told]:
        """Return the events since the last call."""
        with suppress(Empty):
            while True:
                yield self.queue.get_nowait()

    def mend(self, lost: Ran) -> bool:
        """Make the pool usable again after the process of an order was lost; return whether other orders were lost
        with it, so that nobody knows which one was to blame."""
        return False

    def stop(self) -> None:
        """Ask every process to save what it has and to end."""
        return


def handed_out(
    pool: Pool,
    spec: Spec,
    orders: Mapping[str, Callable[[], Order]],
    needs: Mapping[str, frozenset[str]],
    watcher: Watcher,
    at_once: int,
) -> Iterator[Handed]:
    """Hand out cells to a pool and yield each result when it comes.

    orders: by cell folder, a function that makes the cell's order; it is called when all cells that this cell needs are
    done; needs: by cell folder, the folders of the cells among these that it waits for; at_once: the largest number of
    cells that are handed out at the same time.
    """
    waiting, tries = dict(orders), dict.fromkeys(orders, 0)
    running: dict[Ran, Order] = {}
    done: set[str] = set()
    doubted: set[str] = set()  # lost together with others: until they are done, cells run one by one
    try:
        while waiting or running:
            ready = [folder for folder in waiting if needs[folder] <= done]
            for folder in ready[: max(0, (1 if doubted else at_once) - len(running))]:
                order = waiting.pop(folder)()
                tries[folder] += 1
                running[pool.submit(spec, order)] = order
            finished, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for told in pool.events():
                watcher.turn(told.cell)
                getattr(watcher, told.what)(told.value)
            for future in finished:
                order = running.pop(future)
                folder = order.cell.folder
                try:
                    result, wall_s = future.result()
                except BrokenProcessPool:
                    if pool.mend(future):
                        doubted.add(folder)
                        tries[folder] -= 1
                    if tries[folder] < TRIES:
                        watcher.say(f"{order.cell}: its process was lost; the cell is handed out again")
                        waiting[folder] = partial(order._replace, again=False)
                        continue
                    cause = f"its process was lost {TRIES} times (killed, or out of memory)"
                    error = PosttrainError(Problem(str(order.cell), cause, "give it more memory, or fewer jobs"))
                    at, wall_s = cell_folder(spec.folder, order.cell), 0.0
                    result = failed(order.cell, order.hashes.content, error, wall_s, at)
                done.add(folder)
                doubted.discard(folder)
                yield Handed(order.cell, result, wall_s)
    except BaseException:
        pool.stop()
        raise


class Here(Pool):
    """The pool that is this process itself. `submit` runs the order before it returns."""

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
    """A pool of processes on this machine."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.context = jobs, multiprocessing.get_context("spawn")
        self.manager = SyncManager(ctx=self.context)
        try:
            self.manager.start(end_with_parent)
        except BaseException:  # a signal: the manager would complain of a closed pipe
            for process in multiprocessing.active_children():
                process.kill()
            raise
        self.queue = self.manager.Queue()
        self.pool, self.ran = self._new(), set[Ran]()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.jobs, mp_context=self.context, initializer=end_with_parent)

    def submit(self, spec: Spec, order: Order) -> Ran:
        future = self.pool.submit(run_order, spec, order, self.queue)
        self.ran.add(future)
        return future

    def mend(self, lost: Ran) -> bool:
        if lost not in self.ran:
            return True  # of former processes: with one of them all were lost, and there are new ones already
        self.pool.shutdown(cancel_futures=True)  # waits: none may write to a cell's folder that is handed out again
        others = self.ran - {lost}
        self.pool, self.ran = self._new(), set()
        return any(other.cancelled() or isinstance(other.exception(), BrokenProcessPool) for other in others)

    def stop(self) -> None:
        for process in multiprocessing.active_children():
            if process.name.startswith("SpawnProcess"):
                process.terminate()


@contextmanager
def in_processes(jobs: int) -> Iterator[Pool]:
    """Give a pool of `jobs` processes on this machine."""
    pool = _Processes(jobs)
    try:
        yield pool
    finally:
        pool.pool.shutdown(cancel_futures=True)
        pool.manager.shutdown()


class _Ray(Pool):
    """A pool that runs each cell as a Ray task, which requests the study's resources; Ray chooses the machine."""

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

        threading.Thread(target=fetch, daemon=True).start()  # at exit, Python would wait for threads of an executor
        return future


@contextmanager
def on_ray(address: str, resources: Resources) -> Iterator[Pool]:
    """Give a pool on a Ray cluster. Raise MissingError if ray is not installed.

    address: the cluster's address, or `local` for a cluster that is started here and ends with the run. Every node of
    the cluster must find the run folder and the models under the same paths.
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
