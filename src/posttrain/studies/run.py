"""Run a study: cell by cell, nothing twice, nothing lost.

What a killed run has finished stays finished: a cell is done when its `result.json` holds the content hash of today's
plan. A cell that fails is recorded and does not stop the others. One process at a time works in a run folder.
"""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from posttrain import __version__, registry
from posttrain.config.change import Change
from posttrain.errors import ConfigError, DataError, Interrupted, PosttrainError, Problem
from posttrain.exams.change import change_exam
from posttrain.exams.records import SamplesFile, exam_key
from posttrain.exams.scores import ExamResult
from posttrain.inference.respondents import Respondent
from posttrain.studies.bench import Bench
from posttrain.studies.card import card
from posttrain.studies.config import Every, Study
from posttrain.studies.context import MethodContext, MethodResult
from posttrain.studies.plan import Cell, content_hash
from posttrain.studies.results import (
    CellResult,
    Examined,
    read_result,
    summarise_cells,
    to_yaml,
    write_json,
    write_lines,
    write_text,
)
from posttrain.training.environment import environment

__all__ = ["Event", "Outcome", "Silent", "Watcher", "run_study"]


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
    restart: bool = False,
) -> Outcome:
    """Run the selected cells of a plan that are not done, and write results.json of all that are.

    Raises Interrupted on Ctrl-C, after results.json was written. A model that cannot be loaded fails its cells only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        return _Run(study, plan, selected, base, folder, watcher, restart).run()


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock; the system lets go of it when the process ends, however it ends."""
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        try:
            _lock(lock)
        except OSError as error:
            raise PosttrainError(
                Problem(str(folder), "another run is working in this folder", "wait for it, or choose another --output")
            ) from error
        yield


def _lock(file: IO[str]) -> None:
    """Take the lock of an open file, or raise OSError when another process has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def all_prompts(changes: Sequence[Change]) -> frozenset[str]:
    """Every question that an exam of the study asks: no replay and no extra row may hold one."""
    return frozenset(question.question for change in changes for _, _, question in change.probes())


class _Run:
    def __init__(
        self,
        study: Study,
        plan: Sequence[Cell],
        selected: Sequence[Cell],
        base: Path,
        folder: Path,
        watcher: Watcher,
        restart: bool,
    ) -> None:
        self.study, self.plan, self.base, self.folder = study, plan, base, folder
        self.watcher, self.restart = watcher, restart
        self.selected = {cell.folder for cell in selected}
        self.forbidden = all_prompts([cell.change for cell in plan])
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
            done = sum(result.status == "done" for result in self.results.values())
            raise Interrupted(
                Problem("", f"stopped; {done} of {len(self.plan)} cells are done", "run the same command to go on")
            ) from stop
        finally:
            self._write_results()
        self.outcome.results = self._ordered()
        return self.outcome

    def _run_model(self, model: str, cells: Sequence[Cell]) -> None:
        try:
            bench = Bench(
                model,
                base=self.base,
                forbidden=self.forbidden,
                say=self.watcher.say,
                download=self.study.download,
                trust_remote_code=self.study.trust_remote_code,
                allow_template_mismatch=self.study.allow_template_mismatch,
            )
        except PosttrainError as error:
            for cell in cells:
                if cell.folder in self.selected:
                    self._record(cell, self._failed(cell, "", error, 0.0))
            return
        waiting, kept = [], 0
        for cell in cells:
            key = content_hash(
                cell, self.study, {model: bench.fingerprint}, self.base, self.file_hashes, self.forbidden
            )
            known = read_result(self._place(cell))
            if known is not None and known.hash == key and known.status == "done" and not self._again(cell):
                self.results[cell.folder] = known
                kept += cell.folder in self.selected
            elif cell.folder in self.selected:
                waiting.append((cell, key))
        self._write_results()
        self.outcome.skipped += kept
        if kept:
            self.watcher.say(f"{kept} cells were done before and are kept")
        for number, (cell, key) in enumerate(waiting):
            self.watcher.begins(Event(cell, number, len(waiting)))
            began = time.monotonic()
            result = self._run_cell(cell, key, bench)
            wall_s = time.monotonic() - began
            self.walls.setdefault(cell.method.label, []).append(wall_s)
            self._record(cell, result)
            left_s = self._left_s([later for later, _ in waiting[number + 1 :]])
            self.watcher.ends(Event(cell, number + 1, len(waiting), wall_s, left_s, result))
        if waiting:
            bench.release()
            bench.check_untouched()

    def _again(self, cell: Cell) -> bool:
        return self.restart and cell.folder in self.selected

    def _left_s(self, cells: Sequence[Cell]) -> float:
        """Seconds for these cells, each method at its own mean so far, methods not yet met at the mean of all."""
        means = {method: sum(walls) / len(walls) for method, walls in self.walls.items()}
        overall = sum(means.values()) / len(means)
        return sum(means.get(cell.method.label, overall) for cell in cells)

    def _place(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.folder

    def _run_cell(self, cell: Cell, key: str, bench: Bench) -> CellResult:
        place = self._place(cell)
        place.mkdir(parents=True, exist_ok=True)
        (place / "result.json").unlink(missing_ok=True)
        started = place / "started.txt"
        if self._again(cell) or not started.is_file() or started.read_text(encoding="utf-8") != key:
            for old in ("training", "checkpoints"):
                shutil.rmtree(place / old, ignore_errors=True)
            (place / "samples.jsonl").unlink(missing_ok=True)
            write_text(started, key)
        began = time.monotonic()
        config = {"model": cell.model, "method": cell.method.model_dump(mode="json"), "change": cell.change.name}
        write_text(place / "config.yaml", to_yaml({**config, "seed": cell.seed, "hash": key}))
        write_json(place / "env.json", self.environment)
        try:
            result = _Cell(cell, key, self.study, bench, self.base, self.folder, place, self.watcher).run()
        except Interrupted:  # training was stopped by a signal
            raise
        except Exception as error:
            write_text(place / "error.txt", traceback.format_exc())
            result = self._failed(cell, key, error, time.monotonic() - began)
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
            cell.change.name,
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
                "cells": entries,
                "summary": summarise_cells(ordered),
            },
        )


def open_samples(path: Path, exams: Mapping[str, str]) -> SamplesFile:
    """The samples of a cell; those of another exam (retrained weights, an edited change) are thrown away."""
    try:
        return SamplesFile(path, exams)
    except (ConfigError, DataError):
        path.unlink()
        return SamplesFile(path, exams)


class _Cell:
    """One cell at work: the method, then the exam."""

    def __init__(
        self,
        cell: Cell,
        key: str,
        study: Study,
        bench: Bench,
        base: Path,
        folder: Path,
        place: Path,
        watcher: Watcher,
    ) -> None:
        self.cell, self.key, self.study, self.bench = cell, key, study, bench
        self.base, self.folder, self.place, self.watcher = base, folder, place, watcher
        self.examined: list[Examined] = []
        self.notes: list[str] = []
        self.exam_s = 0.0

    def run(self) -> CellResult:
        cell, began = self.cell, time.monotonic()
        context = MethodContext(
            change=cell.change,
            seed=cell.seed,
            base=self.base,
            folder=self.place,
            key=self.key,
            before=self.bench.before,
            working=self.bench.working,
            replay=self.bench.replay,
            forbidden=self.bench.forbidden,
            keep=self.study.keep,
            every=self.study.checkpoints.every if isinstance(self.study.checkpoints, Every) else None,
            examine=lambda respondent, step: self.examine(respondent, f"step-{step}"),
            say=self.watcher.say,
            on_step=self.watcher.step,
        )
        made: MethodResult = registry.load("method", cell.method.kind).function(cell.method, context)
        write_lines(self.place / "metrics.jsonl", made.metrics)
        self.examine(made.respondent, "final")
        cost = {"wall_s": time.monotonic() - began, "exam_s": self.exam_s, **made.cost}
        result = CellResult(
            self.key,
            cell.model,
            cell.method.label,
            cell.change.name,
            cell.seed,
            "done",
            examined=self.examined,
            cost=cost,
            weights=str(made.weights.relative_to(self.folder)) if made.weights else "",
        )
        write_text(self.place / "card.md", card(cell, result, [*made.notes, *self.notes]))
        return result

    def examine(self, respondent: Respondent, checkpoint: str) -> None:
        """The change exam; samples are appended as they are judged."""
        began = time.monotonic()
        place = self.place if checkpoint == "final" else self.place / "checkpoints" / checkpoint
        change = self.cell.change
        key = exam_key(
            self.bench.before.fingerprint,
            respondent.fingerprint,
            change,
            max_new_tokens=self.study.max_new_tokens,
            mode="first_sentence",
        )
        samples = open_samples(place / "samples.jsonl", {change.name: key})
        result: ExamResult = change_exam(
            self.bench.before,
            respondent,
            change,
            before_cache=self.bench.before_cache(change.name),
            on_sample=lambda sample: samples.append(change.name, sample),
            done=samples.done[change.name],
            max_new_tokens=self.study.max_new_tokens,
            chunk=self.bench.chunk,
        )
        folder = str(place.relative_to(self.folder))
        self.examined.append(Examined(checkpoint, result.scores, result.ci95, result.n, folder))
        self.notes += [note for note in result.notes if note not in self.notes]
        self.exam_s += time.monotonic() - began
