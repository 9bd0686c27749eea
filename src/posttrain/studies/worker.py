"""The worker: it runs one cell after another in one process, and writes each cell's files, also the error of a failure.

A run in this process alone has one worker; with `--jobs` and `--on ray`, each process has one (`handing_out.py`).
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import DiskError, Interrupted, PosttrainError, Problem
from posttrain.exams.results import CellResult, Line, write_json, write_part
from posttrain.models.disk import write_whole, writing
from posttrain.models.edit_delta import EDITS
from posttrain.models.load import LoadedModel
from posttrain.studies.bench import Bench
from posttrain.studies.card import to_yaml
from posttrain.studies.cell import EXAMINED, CellRun
from posttrain.studies.config import Study
from posttrain.studies.events import Watcher
from posttrain.studies.examine import Examiner
from posttrain.studies.exams import Exams
from posttrain.studies.plan import Cell
from posttrain.training.environment import environment, keep_first_day
from posttrain.training.trackers import LOGS

__all__ = ["CellWorker", "Hashes", "Opened", "Order", "cell_folder", "failed"]


class Hashes(NamedTuple):
    """The hashes of a cell. training: of all that goes into its weights; content: of all that goes into its results."""

    training: str
    content: str


class Order(NamedTuple):
    """A cell that a worker should run. products: the folders of the products that it takes, by method, without those of
    failed cells; again: delete what an earlier run has left; needed: another cell takes its product.
    """

    cell: Cell
    hashes: Hashes
    products: Mapping[str, Path]
    again: bool = False
    needed: bool = False


class Opened(NamedTuple):
    """A loaded model of the study, and the exams that its cells take."""

    bench: Bench
    examiner: Examiner


def cell_folder(run: Path, cell: Cell) -> Path:
    """Return a cell's folder in a run folder."""
    return run / "cells" / cell.folder


@dataclass
class CellWorker:
    """Runs cells of one study in one process. It keeps one of the study's models loaded at a time."""

    study: Study
    exams: Exams
    base: Path
    folder: Path
    watcher: Watcher
    opened: dict[str, Opened] = field(default_factory=dict)

    @cached_property
    def environment(self) -> Mapping[str, object]:
        """The description of the machine and the versions of the software, for `env.json`."""
        return environment()

    def open(self, model: str) -> Opened:
        """Load a model with its exams and drop the previous model. Raise the errors of `load_model`."""
        if model not in self.opened:
            self.opened.clear()
            forbidden, say = self.exams.forbidden, self.watcher.say
            bench = Bench(model, base=self.base, forbidden=forbidden, say=say, **self.study.how)
            keep_first_day(bench.loaded.tokenizer, self.folder, say=say)
            self.opened[model] = Opened(bench, Examiner.of(bench, self.exams, self.folder, self.watcher.exam))
        return self.opened[model]

    def run(self, order: Order) -> CellResult:
        """Run a cell and return its result, also if it failed. Raise Interrupted, KeyboardInterrupt and DiskError."""
        cell, hashes = order.cell, order.hashes
        folder = cell_folder(self.folder, cell)
        self._clear(folder, order)
        began = time.monotonic()
        config = {**cell.head, "method": cell.method.model_dump(mode="json"), "hash": hashes.content}
        write_whole(folder / "config.yaml", to_yaml(config))
        write_json(folder / "env.json", self.environment)
        try:
            bench, examiner = self.open(cell.model)
            with writing(folder):
                start = bench.after(_product(order, cell.method.start)) if cell.method.start else bench
                inputs = self._inputs(order, bench)
                where = (self.study, examiner, self.folder, folder, bench, start, inputs)
                result = CellRun(cell, hashes.content, *where, order.needed, self.watcher.step).run()
        except (DiskError, Interrupted):  # the disk is full, or training was stopped by a signal
            raise
        except Exception as error:
            write_whole(folder / "error.txt", traceback.format_exc())
            result = failed(cell, hashes.content, error, time.monotonic() - began, folder)
        else:
            (folder / "error.txt").unlink(missing_ok=True)
        write_part(folder / "result.json", result)
        return result

    def _clear(self, folder: Path, order: Order) -> None:
        """Create the cell's folder, and delete what a training with another hash has left in it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        started = folder / "started.txt"
        known = started.read_text(encoding="utf-8", errors="replace") if started.is_file() else ""
        if order.again or known != order.hashes.training:
            for old in ("training", "steps", "model", "checkpoints", "exams", LOGS):
                shutil.rmtree(folder / old, ignore_errors=True)
            for old in ("samples.jsonl", "metrics.jsonl", "responses.jsonl", EDITS, EXAMINED):
                (folder / old).unlink(missing_ok=True)
            write_whole(started, order.hashes.training)

    def _inputs(self, order: Order, bench: Bench) -> dict[str, Callable[[], LoadedModel]]:
        """Return the functions that load the further models that a cell takes, by the name of the input."""
        made = {
            name: _product(order, name) for name in order.cell.method.all_inputs.values() if name in order.cell.needs
        }

        def load(given: str) -> LoadedModel:
            return (bench.after(made[given]) if given in made else bench.another(given)).loaded

        return {name: partial(load, given) for name, given in order.cell.method.all_inputs.items()}


def _product(order: Order, method: str) -> Path:
    if method not in order.products:
        raise PosttrainError(Problem(str(order.cell), f"needs the model of '{method}', which failed or was not run"))
    return order.products[method]


def failed(cell: Cell, key: str, error: Exception, wall_s: float, folder: Path) -> CellResult:
    """Return the result of a cell that could not be finished. key: its content hash; folder: of its traceback."""
    text, code = f"{type(error).__name__}: {error}; the traceback is in {folder / 'error.txt'}", 1
    if isinstance(error, PosttrainError):
        text, code = str(error), error.exit_code
    cost, where = {"wall_s": wall_s}, f"cells/{cell.folder}"
    line = Line(**cell.head, status="failed", error=text, hash=key, folder=where, cost=cost)
    return CellResult(hash=key, exit_code=code, lines=(line,))
