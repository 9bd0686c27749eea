"""Run a study cell by cell. Finished cells are not run again, and a kill loses no finished cell.

A cell is done if its `result.json` holds the content hash of the present plan. A cell that fails is recorded and does
not stop the others. Only one process at a time works in a run folder; it may hand out its cells to other processes
(`handing_out.py`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from posttrain import __version__
from posttrain.errors import DiskError, Interrupted, PosttrainError, Problem
from posttrain.exams.results import CellResult, MethodInfo, Reference, Results, Untouched, read_part, write_results
from posttrain.exams.summary import summarise
from posttrain.models.disk import safe_name, write_whole, writing
from posttrain.models.meter import listening
from posttrain.models.save import is_saved
from posttrain.studies.bench import Bench
from posttrain.studies.card import to_yaml
from posttrain.studies.chains import step_names
from posttrain.studies.config import MethodConfig, Study
from posttrain.studies.events import Event, Watcher
from posttrain.studies.examine import Examiner
from posttrain.studies.exams import Exams, prepare_exams
from posttrain.studies.handing_out import Here, Pool, Spec, handed_out, in_processes, on_ray
from posttrain.studies.plan import Cell, content_hash, training_hash
from posttrain.studies.reference import reference_of
from posttrain.studies.worker import CellWorker, Hashes, Order, cell_folder, failed
from posttrain.training.lock import only_one
from posttrain.training.trackers import check_trackers

__all__ = ["Outcome", "run_study"]


@dataclass
class Outcome:
    """The outcome of a run. results: the result of every cell that the run folder holds, in the plan's order; skipped:
    number of selected cells that were done before; ran: number of results of this run, with those of cells that failed.
    """

    results: list[CellResult] = field(default_factory=list)
    skipped: int = 0
    ran: int = 0

    @property
    def failed(self) -> list[CellResult]:
        """The results of the cells that could not be finished."""
        return [result for result in self.results if result.status != "done"]


def run_study(
    study: Study,
    plan: Sequence[Cell],
    selected: Sequence[Cell],
    *,
    base: Path,
    folder: Path,
    watcher: Watcher,
    exams: Exams | None = None,
    restart: bool = False,
    jobs: int = 1,
    on: str = "",
) -> Outcome:
    """Run the selected cells of a plan that are not done, and write results.json with all cells that are done.

    base: the study file's folder; folder: the run folder; exams: the study's exams, if they were built already;
    restart: run the selected cells again even if they are done; jobs: the number of processes of this machine that run
    cells; on: `ray` for a Ray that is started here, or the address of a Ray cluster, such as `ray://...`.
    Raise Interrupted on Ctrl-C and DiskError on a full disk, after results.json was written. If a model cannot be
    loaded, only its cells fail.
    """
    check_trackers(study.report_to)
    changes = tuple({change.name: change for cell in plan for change in cell.changes}.values())
    exams = exams or prepare_exams(study, changes, base)
    reference = tuple(reference_of(study, exams, base))
    spec = Spec(study, changes, base.resolve(), folder.resolve(), torch.get_num_threads())
    worker = CellWorker(study, exams, base, folder, watcher)
    chosen = {cell.folder for cell in selected}
    with only_one(folder), listening(watcher.doing):
        for left in [path for path in folder.rglob(".tmp-*.*") if path.is_file()]:  # of processes that were killed
            left.unlink()
        run = _Run(study, plan, chosen, base, folder, watcher, exams, reference, restart, spec, worker)
        if on:
            with on_ray("local" if on == "ray" else on, study.resources) as pool:
                return run.run(pool, len(plan))
        if jobs > 1:
            with in_processes(jobs) as pool:
                return run.run(pool, jobs)
        return run.run(Here(worker), 1)


@dataclass
class _Run:
    """One run of a study. selected: folders of the cells to run; worker: the worker of this process, which also
    examines untouched models."""

    study: Study
    plan: Sequence[Cell]
    selected: set[str]
    base: Path
    folder: Path
    watcher: Watcher
    exams: Exams
    reference: tuple[Reference, ...]
    restart: bool
    spec: Spec
    worker: CellWorker
    before: dict[str, Untouched] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    results: dict[str, CellResult] = field(default_factory=dict)
    walls: dict[str, list[float]] = field(default_factory=dict)
    file_hashes: dict[Path, str] = field(default_factory=dict)
    trained: dict[str, str] = field(default_factory=dict)
    """Training hash of each cell, by its folder."""

    def __post_init__(self) -> None:
        self.needed = frozenset(folder for cell in self.plan for folder in cell.needs.values())
        self.outcome = Outcome()

    def run(self, pool: Pool, at_once: int) -> Outcome:
        write_whole(self.folder / "study.yaml", to_yaml(self.study.model_dump(mode="json", exclude_unset=True)))
        try:
            for model in dict.fromkeys(cell.model for cell in self.plan):
                self._run_model(model, [cell for cell in self.plan if cell.model == model], pool, at_once)
        except (KeyboardInterrupt, Interrupted) as stop:
            mine = [result for folder, result in self.results.items() if folder in self.selected]
            done = sum(result.status == "done" for result in mine)
            before = stop.problems if isinstance(stop, Interrupted) else ()
            again = f"run the same command{' without --restart' if self.restart else ''} to go on"
            counted = Problem("", f"stopped; {done} of {len(self.selected)} cells are done", again)
            raise Interrupted(*before, counted) from stop
        finally:
            self._write_results()
        self.outcome.results = self._ordered()
        return self.outcome

    def _run_model(self, model: str, cells: Sequence[Cell], pool: Pool, at_once: int) -> None:
        try:
            bench, examiner = self.worker.open(model)
        except PosttrainError as error:
            self._all_fail([cell for cell in cells if cell.folder in self.selected], error)
            return
        waiting = self._waiting(bench, cells)
        before = self.folder / "before" / safe_name(model)
        try:
            with writing(before):
                self._note_before(examiner, needed=bool(waiting))
        except (DiskError, Interrupted):  # the run is stopped, or the disk is full for the next cell too
            raise
        except Exception as error:
            write_whole(before / "error.txt", traceback.format_exc())
            where = Problem(model, f"{type(error).__name__}: {error}", f"traceback in {before / 'error.txt'}")
            known = error if isinstance(error, PosttrainError) else PosttrainError(where)
            self._all_fail(list(waiting), known)
            return
        self._write_results()
        if isinstance(pool, Here):
            self._hand_out(waiting, pool, at_once)
            if waiting:
                bench.release()
                bench.check_untouched()
        else:
            del bench, examiner  # the other processes load the model themselves
            self.worker.opened.clear()
            self._hand_out(waiting, pool, at_once)

    def _hand_out(self, waiting: dict[Cell, Hashes], pool: Pool, at_once: int) -> None:
        left, total = list(waiting), len(waiting)

        def order(cell: Cell) -> Order:
            self.watcher.begins(Event(cell, total - len(left), total))
            return self._order(cell, waiting[cell])

        orders: dict[str, Callable[[], Order]] = {cell.folder: partial(order, cell) for cell in waiting}
        needs = {cell.folder: frozenset(cell.needs.values()) & orders.keys() for cell in waiting}
        for cell, result, wall_s in handed_out(pool, self.spec, orders, needs, self.watcher, at_once):
            left.remove(cell)
            self.walls.setdefault(cell.method.label, []).append(wall_s)
            self._record(cell, result)
            self.watcher.ends(Event(cell, total - len(left), total, wall_s, self._left_s(left) / at_once, result))

    def _order(self, cell: Cell, hashes: Hashes) -> Order:
        known = {method: self.results.get(folder) for method, folder in cell.needs.items()}
        products = {
            method: self.folder / one.first.weights
            for method, one in known.items()
            if one is not None and one.status == "done" and one.first.weights
        }
        return Order(cell, hashes, products, again=self._again(cell), needed=cell.folder in self.needed)

    def _all_fail(self, cells: Sequence[Cell], error: PosttrainError) -> None:
        """Record the error for these cells, such as all cells of a model that could not be loaded."""
        for cell in cells:
            self._record(cell, failed(cell, "", error, 0.0, cell_folder(self.folder, cell)))

    def _waiting(self, bench: Bench, cells: Sequence[Cell]) -> dict[Cell, Hashes]:
        """Return the selected cells that are not done, with their hashes. Keep the results of those that are done."""
        waiting: dict[Cell, Hashes] = {}
        kept = 0
        for cell in cells:  # a cell comes after those that it needs
            needed = {name: self.trained.get(folder, "") for name, folder in cell.needs.items()}
            args = (bench.fingerprint, self.base, self.file_hashes, self.exams.forbidden, needed)
            try:
                training = self.trained[cell.folder] = training_hash(cell, *args)
            except PosttrainError as error:  # a file of the method holds a bad row
                if cell.folder in self.selected:
                    self._all_fail([cell], error)
                continue
            hashes = Hashes(training, content_hash(self.study, training, self.exams.hashes))
            known = read_part(cell_folder(self.folder, cell) / "result.json", CellResult)
            if known is not None and (known.hash, known.status) != (hashes.content, "done"):
                known = None
            if known is not None and cell.folder in self.needed:  # by another cell, which takes its product
                product = self.folder / known.first.weights if known.first.weights else None
                known = known if product is not None and is_saved(product) else None
            if known is not None and not self._again(cell):
                self.results[cell.folder] = known
                kept += cell.folder in self.selected
            elif cell.folder in self.selected:
                waiting[cell] = hashes
        self._write_results()
        self.outcome.skipped += kept
        if kept:
            were = "cell was done before and is" if kept == 1 else "cells were done before and are"
            self.watcher.say(f"{kept} {were} kept")
        return waiting

    def _note_before(self, examiner: Examiner, *, needed: bool) -> None:
        """Examine the untouched model, and keep its scores and notes for results.json."""
        entry = examiner.take_before(needed=needed)
        if entry is not None:
            self.before[examiner.name] = entry
            for name, notes in examiner.notes.items():
                known = self.notes.setdefault(name, [])
                known += [note for note in notes if note not in known]

    def _again(self, cell: Cell) -> bool:
        return self.restart and cell.folder in self.selected

    def _left_s(self, cells: Sequence[Cell]) -> float:
        """Estimate the seconds for these cells: by the mean of their method so far, or by the mean of all methods."""
        means = {method: sum(walls) / len(walls) for method, walls in self.walls.items()}
        overall = sum(means.values()) / len(means)
        return sum(means.get(cell.method.label, overall) for cell in cells)

    def _record(self, cell: Cell, result: CellResult) -> None:
        self.results[cell.folder] = result
        self.outcome.ran += 1
        self._write_results()

    def _ordered(self) -> list[CellResult]:
        return [self.results[cell.folder] for cell in self.plan if cell.folder in self.results]

    def _write_results(self) -> None:
        """Write results.json with all known results, in the plan's order."""
        lines = tuple(line for result in self._ordered() for line in result.lines)
        methods = {cell.method.label: cell.method for cell in self.plan}
        write_results(
            self.folder,
            Results(
                study=self.study.study,
                title=self.study.title or self.study.study,
                posttrain=__version__,
                planned=len(self.plan),
                methods={name: about(method) for name, method in methods.items()},
                exams=self.exams.info(self.notes),
                before=tuple(self.before.values()),
                cells=lines,
                summary=summarise(lines),
                reference=self.reference,
            ),
        )


def about(method: MethodConfig) -> MethodInfo:
    """Return a method's kind, description, start and steps for the report."""
    steps = tuple(step_names(method.parts)) if len(method.parts) > 1 else ()
    return MethodInfo(kind=method.kind, summary=method.summary, start=method.start, steps=steps)
