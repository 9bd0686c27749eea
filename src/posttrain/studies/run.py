"""Run a study: cell by cell, nothing twice, nothing lost.

What a killed run has finished stays finished: a cell is done when its `result.json` holds the content hash of today's
plan. A cell that fails is recorded and does not stop the others. One process at a time works in a run folder.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from posttrain import __version__
from posttrain.errors import DiskError, Interrupted, PosttrainError, Problem
from posttrain.exams.results import (
    CellResult,
    Line,
    MethodInfo,
    Reference,
    Results,
    Untouched,
    read_part,
    write_json,
    write_part,
    write_results,
)
from posttrain.exams.summary import summarise
from posttrain.models.disk import safe_name, write_whole, writing
from posttrain.models.load import LoadedModel
from posttrain.models.meter import Doing, listening
from posttrain.studies.bench import Bench
from posttrain.studies.cell import EXAMINED, CellRun
from posttrain.studies.chains import step_names
from posttrain.studies.config import MethodConfig, Study
from posttrain.studies.examine import ExamEvent, Examiner
from posttrain.studies.exams import Exams, prepare_exams
from posttrain.studies.files import to_yaml
from posttrain.studies.plan import Cell, content_hash, training_hash
from posttrain.studies.reference import reference_of
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
    changes = list({change.name: change for cell in plan for change in cell.changes}.values())
    exams = exams or prepare_exams(study, changes, base)
    reference = reference_of(study, exams, base)
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
        reference: list[Reference],
        restart: bool,
    ) -> None:
        self.study, self.plan, self.base, self.folder = study, plan, base, folder
        self.watcher, self.exams, self.reference, self.restart = watcher, exams, reference, restart
        self.selected = {cell.folder for cell in selected}
        self.before: dict[str, Untouched] = {}
        self.notes: dict[str, list[str]] = {}
        self.results: dict[str, CellResult] = {}
        self.walls: dict[str, list[float]] = {}
        self.file_hashes: dict[Path, str] = {}
        self.trained: dict[str, str] = {}
        self.environment = environment()
        self.outcome = Outcome(folder)

    def run(self) -> Outcome:
        write_whole(self.folder / "study.yaml", to_yaml(self.study.model_dump(mode="json", exclude_unset=True)))
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
        examiner = Examiner.of(bench, self.exams, self.folder, self.watcher.exam)
        before = self.folder / "before" / safe_name(model)
        try:
            with writing(before):
                self._note_before(examiner, needed=bool(waiting))
        except (DiskError, Interrupted):  # stopped, or the next cell would find no more room than this one
            raise
        except Exception as error:
            before.mkdir(parents=True, exist_ok=True)
            write_whole(before / "error.txt", traceback.format_exc())
            where = Problem(model, f"{type(error).__name__}: {error}", f"traceback in {before / 'error.txt'}")
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
        self.trained = {}  # folder -> training hash
        for cell in cells:
            try:
                hashes = self._hashes(cell, bench)
            except PosttrainError as error:  # a bad row in a file of the method's
                if cell.folder in self.selected:
                    self._record(cell, self._failed(cell, "", error, 0.0))
                continue
            known = read_part(self._place(cell) / "result.json", CellResult)
            done = known is not None and known.hash == hashes.content and known.status == "done"
            if done and known is not None and not self._again(cell) and self._has_product(cell, known):
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

    def _has_product(self, cell: Cell, known: CellResult) -> bool:
        """Whether the product of a finished cell is there, where another selected cell takes it."""
        return not self._is_needed(cell) or (self.folder / known.first.weights).is_dir()

    def _is_needed(self, cell: Cell) -> bool:
        return any(cell.folder in other.needs.values() for other in self.plan)

    def _hashes(self, cell: Cell, bench: Bench) -> Hashes:
        """Of a cell whose needed cells have been hashed before it."""
        needed = {name: self.trained.get(folder, "") for name, folder in cell.needs.items()}
        args = (bench.fingerprint, self.base, self.file_hashes, self.exams.forbidden, needed)
        training = self.trained[cell.folder] = training_hash(cell, *args)
        return Hashes(training, content_hash(self.study, training, self.exams.hashes))

    def _note_before(self, examiner: Examiner, *, needed: bool) -> None:
        """What the untouched model scores, for results.json."""
        entry = examiner.take_before(needed=needed)
        if entry is not None:
            self.before[examiner.name] = entry
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
            for old in ("training", "steps", "model", "checkpoints", "exams", LOGS):
                shutil.rmtree(place / old, ignore_errors=True)
            for old in ("samples.jsonl", "metrics.jsonl", EXAMINED):
                (place / old).unlink(missing_ok=True)
            write_whole(started, hashes.training)
        began = time.monotonic()
        config = {"model": cell.model, "method": cell.method.model_dump(mode="json"), "change": cell.change_name}
        write_whole(place / "config.yaml", to_yaml({**config, "seed": cell.seed, "hash": hashes.content}))
        write_json(place / "env.json", self.environment)
        try:
            with writing(place):
                result = CellRun(
                    cell,
                    hashes.content,
                    self.study,
                    examiner,
                    bench,
                    place,
                    start=self._start(cell, bench),
                    inputs=self._inputs(cell, bench),
                    needed=self._is_needed(cell),
                    on_step=self.watcher.step,
                ).run()
        except (DiskError, Interrupted):  # the disk is full, or training was stopped by a signal
            raise
        except Exception as error:
            write_whole(place / "error.txt", traceback.format_exc())
            result = self._failed(cell, hashes.content, error, time.monotonic() - began)
        else:
            (place / "error.txt").unlink(missing_ok=True)
        write_part(place / "result.json", result)
        return result

    def _start(self, cell: Cell, bench: Bench) -> Bench | None:
        """The bench that a cell starts from, where that is another method's product."""
        return bench.after(self._product(cell, cell.method.start)) if cell.method.start else None

    def _product(self, cell: Cell, method: str) -> Path:
        """The product of a method that a cell needs."""
        known = self.results.get(cell.needs[method])
        if known is None or known.status != "done" or not known.first.weights:
            cause = "which was not run" if known is None else "which failed"
            raise PosttrainError(Problem(str(cell), f"needs the model of '{method}', {cause}"))
        return self.folder / known.first.weights

    def _inputs(self, cell: Cell, bench: Bench) -> dict[str, Callable[[], LoadedModel]]:
        """What loads each model that a cell takes beside the one that it starts from."""

        def loader(given: str) -> Callable[[], LoadedModel]:
            if given in cell.needs:
                product = self._product(cell, given)
                return lambda: bench.after(product).loaded
            return lambda: bench.another(given).loaded

        return {name: loader(given) for name, given in cell.method.all_inputs.items()}

    def _failed(self, cell: Cell, key: str, error: Exception, wall_s: float) -> CellResult:
        known = isinstance(error, PosttrainError)
        where = f"; the traceback is in {self._place(cell) / 'error.txt'}"
        message = str(error) if known else f"{type(error).__name__}: {error}{where}"
        code = error.exit_code if isinstance(error, PosttrainError) else 1
        line = Line(
            model=cell.model,
            method=cell.method.label,
            change=cell.change_name,
            seed=cell.seed,
            status="failed",
            error=message,
            hash=key,
            folder=f"cells/{cell.folder}",
            cost={"wall_s": wall_s},
        )
        return CellResult(hash=key, exit_code=code, lines=(line,))

    def _record(self, cell: Cell, result: CellResult) -> None:
        self.results[cell.folder] = result
        self.outcome.ran += 1
        self._write_results()

    def _ordered(self) -> list[CellResult]:
        return [self.results[cell.folder] for cell in self.plan if cell.folder in self.results]

    def _write_results(self) -> None:
        """results.json of all that is known, in the plan's order."""
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
                reference=tuple(self.reference),
            ),
        )


def about(method: MethodConfig) -> MethodInfo:
    """What a method says of itself."""
    steps = tuple(step_names(method.parts)) if len(method.parts) > 1 else ()
    return MethodInfo(kind=method.kind, summary=method.summary, start=method.start, steps=steps)
