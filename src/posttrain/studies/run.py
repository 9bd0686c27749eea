"""Run a study: cell by cell, nothing twice, nothing lost.

What a killed run has finished stays finished: a cell is done when its `result.json` holds the content hash of today's
plan. A cell that fails is recorded and does not stop the others. One process at a time works in a run folder.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from posttrain import __version__
from posttrain.errors import DiskError, Interrupted, PosttrainError, Problem
from posttrain.models.disk import writing
from posttrain.models.meter import Doing, listening
from posttrain.studies.bench import Bench
from posttrain.studies.cell import EXAMINED, CellRun
from posttrain.studies.config import Study
from posttrain.studies.examine import ExamEvent, Examiner
from posttrain.studies.exams import Exams, prepare_exams
from posttrain.studies.plan import Cell, content_hash, training_hash
from posttrain.studies.reference import reference_of
from posttrain.studies.results import (
    CellResult,
    read_result,
    summarise_cells,
    to_yaml,
    write_json,
    write_text,
)
from posttrain.training.dates import keep_first_day
from posttrain.training.environment import environment
from posttrain.training.lock import only_one
from posttrain.training.trackers import LOGS, check_trackers

__all__ = ["Event", "ExamEvent", "Outcome", "Silent", "Watcher", "run_study"]


class Hashes(NamedTuple):
    """Of a cell: everything that goes into its weights, and into its results."""

    training: str
    content: str


class Event(NamedTuple):
    """A cell has begun (`wall_s` None) or ended; done and total count the cells of this run, left_s is a guess."""

    cell: Cell
    done: int
    total: int
    wall_s: float | None = None
    left_s: float | None = None
    result: CellResult | None = None


class Watcher(Protocol):
    """Told what happens."""

    def say(self, line: str) -> None:
        """A choice made, a count, a problem."""

    def begins(self, event: Event) -> None:
        """A cell begins."""

    def ends(self, event: Event) -> None:
        """A cell is done or has failed."""

    def step(self, entry: Mapping[str, Any]) -> None:
        """A training step of the present cell."""

    def exam(self, event: ExamEvent) -> None:
        """An exam of the present cell, or of the untouched model, begins or goes on."""

    def doing(self, work: Doing) -> None:
        """Other long work of the present cell begins or goes on."""


class Silent:
    """A watcher that says nothing."""

    def say(self, line: str) -> None:
        return None

    def begins(self, event: Event) -> None:
        return None

    def ends(self, event: Event) -> None:
        return None

    def step(self, entry: Mapping[str, Any]) -> None:
        return None

    def exam(self, event: ExamEvent) -> None:
        return None

    def doing(self, work: Doing) -> None:
        return None


@dataclass
class Outcome:
    """What a run has brought: results of every cell that the run folder knows, in the plan's order."""

    folder: Path
    results: list[CellResult] = field(default_factory=list)
    skipped: int = 0
    ran: int = 0

    @property
    def failed(self) -> list[CellResult]:
        """Cells that could not be finished."""
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
) -> Outcome:
    """Run the selected cells of a plan that are not done, and write results.json of all that are.

    exams: the study's, where they were read already. Raises Interrupted on Ctrl-C and DiskError on a
    full disk, after results.json was written. A
    model that cannot be loaded fails its cells only.
    """
    check_trackers(study.report_to)
    changes = list({cell.change_name: cell.change for cell in plan if cell.change is not None}.values())
    exams = exams or prepare_exams(study, changes, base)
    reference = reference_of(study, changes, exams, base)
    with only_one(folder), listening(watcher.doing):
        return _Run(study, plan, selected, base, folder, watcher, exams, reference, restart).run()


class _Run:
    def __init__(
        self,
        study: Study,
        plan: Sequence[Cell],
        selected: Sequence[Cell],
        base: Path,
        folder: Path,
        watcher: Watcher,
        exams: Exams,
        reference: list[dict[str, Any]],
        restart: bool,
    ) -> None:
        self.study, self.plan, self.base, self.folder = study, plan, base, folder
        self.watcher, self.exams, self.reference, self.restart = watcher, exams, reference, restart
        self.selected = {cell.folder for cell in selected}
        self.before: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, list[str]] = {}
        self.results: dict[str, CellResult] = {}
        self.walls: dict[str, list[float]] = {}
        self.file_hashes: dict[Path, str] = {}
        self.environment = environment()
        self.outcome = Outcome(folder)

    def run(self) -> Outcome:
        write_text(self.folder / "study.yaml", to_yaml(self.study.model_dump(mode="json", exclude_unset=True)))
        try:
            for model in dict.fromkeys(cell.model for cell in self.plan):
                self._run_model(model, [cell for cell in self.plan if cell.model == model])
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

    def _run_model(self, model: str, cells: Sequence[Cell]) -> None:
        try:
            bench = Bench(
                model,
                base=self.base,
                forbidden=self.exams.forbidden,
                say=self.watcher.say,
                download=self.study.download,
                trust_remote_code=self.study.trust_remote_code,
                allow_template_mismatch=self.study.allow_template_mismatch,
            )
        except PosttrainError as error:
            self._all_fail([cell for cell in cells if cell.folder in self.selected], error)
            return
        keep_first_day(bench.loaded.tokenizer, self.folder, say=self.watcher.say)
        waiting = self._waiting(bench, cells)
        examiner = Examiner(bench, self.study, self.exams, self.folder, self.watcher.exam)
        try:
            with writing(examiner.place):
                self._note_before(examiner, needed=bool(waiting))
        except (DiskError, Interrupted):  # stopped, or the next cell would find no more room than this one
            raise
        except Exception as error:
            examiner.place.mkdir(parents=True, exist_ok=True)
            write_text(examiner.place / "error.txt", traceback.format_exc())
            where = Problem(model, f"{type(error).__name__}: {error}", f"traceback in {examiner.place / 'error.txt'}")
            known = error if isinstance(error, PosttrainError) else PosttrainError(where)
            self._all_fail([cell for cell, _ in waiting], known)
            return
        self._write_results()
        for number, (cell, hashes) in enumerate(waiting):
            self.watcher.begins(Event(cell, number, len(waiting)))
            began = time.monotonic()
            result = self._run_cell(cell, hashes, bench, examiner)
            wall_s = time.monotonic() - began
            self.walls.setdefault(cell.method.label, []).append(wall_s)
            self._record(cell, result)
            left_s = self._left_s([later for later, _ in waiting[number + 1 :]])
            self.watcher.ends(Event(cell, number + 1, len(waiting), wall_s, left_s, result))
        if waiting:
            bench.release()
            bench.check_untouched()

    def _all_fail(self, cells: Sequence[Cell], error: PosttrainError) -> None:
        """None of a model's cells can be run."""
        for cell in cells:
            self._record(cell, self._failed(cell, "", error, 0.0))

    def _waiting(self, bench: Bench, cells: Sequence[Cell]) -> list[tuple[Cell, Hashes]]:
        """The selected cells that are not done; what is done is taken up."""
        waiting, kept = [], 0
        for cell in cells:
            try:
                hashes = self._hashes(cell, bench)
            except PosttrainError as error:  # a bad row in a file of the method's
                if cell.folder in self.selected:
                    self._record(cell, self._failed(cell, "", error, 0.0))
                continue
            known = read_result(self._place(cell))
            if known is not None and known.hash == hashes.content and known.status == "done" and not self._again(cell):
                self.results[cell.folder] = known
                kept += cell.folder in self.selected
            elif cell.folder in self.selected:
                waiting.append((cell, hashes))
        self._write_results()
        self.outcome.skipped += kept
        if kept:
            were = "cell was done before and is" if kept == 1 else "cells were done before and are"
            self.watcher.say(f"{kept} {were} kept")
        return waiting

    def _hashes(self, cell: Cell, bench: Bench) -> Hashes:
        fingerprints = {cell.model: bench.fingerprint}
        training = training_hash(cell, fingerprints, self.base, self.file_hashes, self.exams.forbidden)
        return Hashes(training, content_hash(self.study, training, self.exams.hashes))

    def _note_before(self, examiner: Examiner, *, needed: bool) -> None:
        """What the untouched model scores, for results.json."""
        entry = examiner.take_before(needed=needed)
        if entry is not None:
            self.before[examiner.bench.name] = {key: value for key, value in entry.items() if key != "notes"}
            for name, notes in examiner.notes.items():
                known = self.notes.setdefault(name, [])
                known += [note for note in notes if note not in known]

    def _again(self, cell: Cell) -> bool:
        return self.restart and cell.folder in self.selected

    def _left_s(self, cells: Sequence[Cell]) -> float:
        """Seconds for these cells, each method at its own mean so far, methods not yet met at the mean of all."""
        means = {method: sum(walls) / len(walls) for method, walls in self.walls.items()}
        overall = sum(means.values()) / len(means)
        return sum(means.get(cell.method.label, overall) for cell in cells)

    def _place(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.folder

    def _run_cell(self, cell: Cell, hashes: Hashes, bench: Bench, examiner: Examiner) -> CellResult:
        place = self._place(cell)
        place.mkdir(parents=True, exist_ok=True)
        (place / "result.json").unlink(missing_ok=True)
        started = place / "started.txt"
        known = started.read_text(encoding="utf-8") if started.is_file() else ""
        if self._again(cell) or known != hashes.training:
            for old in ("training", "checkpoints", "exams", LOGS):
                shutil.rmtree(place / old, ignore_errors=True)
            for old in ("samples.jsonl", "metrics.jsonl", EXAMINED):
                (place / old).unlink(missing_ok=True)
            write_text(started, hashes.training)
        began = time.monotonic()
        config = {"model": cell.model, "method": cell.method.model_dump(mode="json"), "change": cell.change_name}
        write_text(place / "config.yaml", to_yaml({**config, "seed": cell.seed, "hash": hashes.content}))
        write_json(place / "env.json", self.environment)
        try:
            with writing(place):
                result = CellRun(
                    cell,
                    hashes.content,
                    self.study,
                    bench,
                    examiner,
                    self.base,
                    place,
                    self.watcher.say,
                    self.watcher.step,
                ).run()
        except (DiskError, Interrupted):  # the disk is full, or training was stopped by a signal
            raise
        except Exception as error:
            write_text(place / "error.txt", traceback.format_exc())
            result = self._failed(cell, hashes.content, error, time.monotonic() - began)
        else:
            (place / "error.txt").unlink(missing_ok=True)
        write_json(place / "result.json", asdict(result))
        return result

    def _failed(self, cell: Cell, key: str, error: Exception, wall_s: float) -> CellResult:
        known = isinstance(error, PosttrainError)
        where = f"; the traceback is in {self._place(cell) / 'error.txt'}"
        message = str(error) if known else f"{type(error).__name__}: {error}{where}"
        code = error.exit_code if isinstance(error, PosttrainError) else 1
        return CellResult(
            key,
            cell.model,
            cell.method.label,
            cell.change_name,
            cell.seed,
            "failed",
            error=message,
            exit_code=code,
            cost={"wall_s": wall_s},
        )

    def _record(self, cell: Cell, result: CellResult) -> None:
        self.results[cell.folder] = result
        self.outcome.ran += 1
        self._write_results()

    def _ordered(self) -> list[CellResult]:
        return [self.results[cell.folder] for cell in self.plan if cell.folder in self.results]

    def _write_results(self) -> None:
        """results.json of all that is known, in the plan's order."""
        ordered = self._ordered()
        entries: list[dict[str, Any]] = []
        for cell in self.plan:
            if cell.folder in self.results:
                for entry in self.results[cell.folder].entries():
                    entry.setdefault("folder", f"cells/{cell.folder}")
                    entries.append(entry)
        write_json(
            self.folder / "results.json",
            {
                "study": self.study.study,
                "title": self.study.title or self.study.study,
                "posttrain": __version__,
                "planned": len(self.plan),
                "exams": self.exams.info(self.notes),
                "before": list(self.before.values()),
                "cells": entries,
                "summary": summarise_cells(ordered),
                "reference": self.reference,
            },
        )
