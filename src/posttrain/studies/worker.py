"""What runs one cell after another in one process: models loaded once, every cell's files, errors kept beside them.

A run of a study in this process has one worker; `--jobs` and `--on ray` have one in each process (`handing_out.py`).
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import DiskError, Interrupted, PosttrainError, Problem
from posttrain.exams.results import CellResult, Line, write_json, write_part
from posttrain.models.disk import write_whole, writing
from posttrain.models.load import LoadedModel
from posttrain.studies.bench import Bench
from posttrain.studies.cell import EXAMINED, CellRun
from posttrain.studies.config import Study
from posttrain.studies.events import Watcher
from posttrain.studies.examine import Examiner
from posttrain.studies.exams import Exams
from posttrain.studies.files import to_yaml
from posttrain.studies.plan import Cell
from posttrain.training.environment import environment, keep_first_day
from posttrain.training.trackers import LOGS

__all__ = ["CellWorker", "Hashes", "Opened", "Order", "cell_folder", "failed"]


class Hashes(NamedTuple):
    """Of a cell: everything that goes into its weights, and into its results."""

    training: str
    content: str


class Order(NamedTuple):
    """A cell to be run. products: folders of the models that it takes, by method, where their cells could be run;
    again: throw away what an earlier run has left; needed: another cell takes its product.
    """

    cell: Cell
    hashes: Hashes
    products: Mapping[str, Path]
    again: bool = False
    needed: bool = False


class Opened(NamedTuple):
    """A model of the study, and the exams that its cells take."""

    bench: Bench
    examiner: Examiner


def cell_folder(run: Path, cell: Cell) -> Path:
    """A cell's folder in a run folder."""
    return run / "cells" / cell.folder


@dataclass
class CellWorker:
    """Runs cells of one study in one process; of its models one is loaded at a time."""

    study: Study
    exams: Exams
    base: Path
    folder: Path
    watcher: Watcher
    opened: dict[str, Opened] = field(default_factory=dict)

    @cached_property
    def environment(self) -> Mapping[str, object]:
        """The machine and the versions, for `env.json`."""
        return environment()

    def open(self, model: str) -> Opened:
        """The model, loaded, with its exams; errors of loading it. The one before it is given up."""
        if model not in self.opened:
            self.opened.clear()
            bench = Bench(
                model,
                base=self.base,
                forbidden=self.exams.forbidden,
                say=self.watcher.say,
                download=self.study.download,
                trust_remote_code=self.study.trust_remote_code,
                allow_template_mismatch=self.study.allow_template_mismatch,
            )
            keep_first_day(bench.loaded.tokenizer, self.folder, say=self.watcher.say)
            self.opened[model] = Opened(bench, Examiner.of(bench, self.exams, self.folder, self.watcher.exam))
        return self.opened[model]

    def run(self, order: Order) -> CellResult:
        """The result of a cell, also of one that failed. Raises Interrupted, KeyboardInterrupt and DiskError."""
        cell, hashes = order.cell, order.hashes
        folder = cell_folder(self.folder, cell)
        self._clear(folder, order)
        began = time.monotonic()
        config = {"model": cell.model, "method": cell.method.model_dump(mode="json"), "change": cell.change_name}
        write_whole(folder / "config.yaml", to_yaml({**config, "seed": cell.seed, "hash": hashes.content}))
        write_json(folder / "env.json", self.environment)
        try:
            bench, examiner = self.open(cell.model)
            with writing(folder):
                result = CellRun(
                    cell,
                    hashes.content,
                    self.study,
                    examiner,
                    bench,
                    folder,
                    start=self._start(order, bench),
                    inputs=self._inputs(order, bench),
                    needed=order.needed,
                    on_step=self.watcher.step,
                ).run()
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
        """The cell's folder, without what another training has left."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        started = folder / "started.txt"
        known = started.read_text(encoding="utf-8") if started.is_file() else ""
        if order.again or known != order.hashes.training:
            for old in ("training", "steps", "model", "checkpoints", "exams", LOGS):
                shutil.rmtree(folder / old, ignore_errors=True)
            for old in ("samples.jsonl", "metrics.jsonl", "responses.jsonl", EXAMINED):
                (folder / old).unlink(missing_ok=True)
            write_whole(started, order.hashes.training)

    def _start(self, order: Order, bench: Bench) -> Bench | None:
        """The bench that a cell starts from, where that is another method's product."""
        start = order.cell.method.start
        return bench.after(_product(order, start)) if start else None

    def _inputs(self, order: Order, bench: Bench) -> dict[str, Callable[[], LoadedModel]]:
        """What loads each model that a cell takes beside the one that it starts from."""

        def loader(given: str) -> Callable[[], LoadedModel]:
            if given in order.cell.needs:
                product = _product(order, given)
                return lambda: bench.after(product).loaded
            return lambda: bench.another(given).loaded

        return {name: loader(given) for name, given in order.cell.method.all_inputs.items()}


def _product(order: Order, method: str) -> Path:
    if method not in order.products:
        raise PosttrainError(Problem(str(order.cell), f"needs the model of '{method}', which failed or was not run"))
    return order.products[method]


def failed(cell: Cell, key: str, error: Exception, wall_s: float, folder: Path) -> CellResult:
    """The result of a cell that could not be finished; folder: where its traceback is."""
    known = isinstance(error, PosttrainError)
    where = f"; the traceback is in {folder / 'error.txt'}"
    line = Line(
        model=cell.model,
        method=cell.method.label,
        change=cell.change_name,
        seed=cell.seed,
        status="failed",
        error=str(error) if known else f"{type(error).__name__}: {error}{where}",
        hash=key,
        folder=f"cells/{cell.folder}",
        cost={"wall_s": wall_s},
    )
    code = error.exit_code if isinstance(error, PosttrainError) else 1
    return CellResult(hash=key, exit_code=code, lines=(line,))
