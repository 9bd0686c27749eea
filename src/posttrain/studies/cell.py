"""Run one cell: the method offers candidates, and each candidate takes the exams immediately.

The result of a point is written beside its samples as soon as its exams are finished; the result of the cell is written
last. So a kill loses at most one answer, and the same command continues from there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain import registry
from posttrain.errors import PosttrainError, Problem
from posttrain.exams.capabilities import relative_changes
from posttrain.exams.compare import Comparison
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.results import CellResult, Examined, Line, PointResult, read_part, write_part
from posttrain.exams.statistics import separate_scores, transfer_scores
from posttrain.models.disk import write_whole
from posttrain.models.load import LoadedModel
from posttrain.models.memory import peak_gib, peak_memory
from posttrain.studies.bench import Bench
from posttrain.studies.candidates import END, Candidate, CellContext, Point
from posttrain.studies.card import card
from posttrain.studies.chains import sequence
from posttrain.studies.config import Study, safe_name
from posttrain.studies.examine import Examiner
from posttrain.studies.plan import Cell

__all__ = ["EXAMINED", "CellRun"]

TRANSFER = ("acc", "bwt", "fwt", "forgetting")
"""Scores computed from the matrix of stages; they are reported as `stages.acc` and so on."""

EXAMINED = "examined.json"
"""Name of the file that is written beside a point's samples when its exams are finished."""


@dataclass
class CellRun:
    """The run of one cell. key: the cell's content hash; root: the run's folder; start: the bench of the model that the
    cell starts from; inputs: the further models that it takes, by name; needed: whether another cell takes its product.
    """

    cell: Cell
    key: str
    study: Study
    examiner: Examiner
    root: Path
    folder: Path
    untouched: Bench
    start: Bench
    inputs: Mapping[str, Callable[[], LoadedModel]]
    needed: bool
    on_step: Callable[[Mapping[str, Any]], None]
    found: dict[str, PointResult] = field(default_factory=dict)
    end: Candidate | None = None
    notes: list[str] = field(default_factory=list)
    scratch: list[Path] = field(default_factory=list)

    @peak_memory()
    def run(self) -> CellResult:
        """Examine every candidate and return the cell's result. Products that are not kept are deleted."""
        cell, began = self.cell, time.monotonic()
        (self.folder / "metrics.jsonl").touch()  # a training appends to it
        self._find()
        method, context = cell.method, self._context()
        if cell.sequence is not None and not method.takes_sequence:
            offered = sequence(method, context)
        else:
            offered = registry.load("method", method.kind).function(method, context)
        while self._take_next(offered):
            pass
        end = self.end
        if end is None:
            raise PosttrainError(Problem(cell.method.label, "the method offered no candidate at its end"))
        stages = self._stages() if cell.stages else {}
        points = self._in_order()
        copied = end.same is not None and end.same.name in self.found
        taken = [
            one for name, point in self.found.items() if not (copied and name == END.name) for one in point.examined
        ]
        exam_s = sum(one.cost.get("exam_s", 0.0) for one in taken)
        wall_s = max(time.monotonic() - began, exam_s + end.cost.get("train_s", 0.0))  # includes earlier runs
        peak = max(peak_gib(), end.cost.get("peak_gib", 0.0))  # includes earlier runs
        cost = {"wall_s": wall_s, "exam_s": exam_s, **end.cost, "peak_gib": peak}
        weights = str(end.product.relative_to(self.root)) if end.product is not None else ""
        lines = [
            Line(
                **dict(one)
                | cell.head
                | {"change": one.change, "cost": {**cost, **one.cost}, "hash": self.key, "weights": weights},
                fingerprint=point.fingerprint,
                stages=stages if one.checkpoint == END.name else {},
            )
            for point in points
            for one in point.examined
        ]
        result = CellResult(hash=self.key, lines=tuple(lines))
        told = dict.fromkeys([*self.notes, *(note for line in lines for note in line.notes)])
        write_whole(self.folder / "card.md", card(cell, result, list(told)))
        for folder in [*self.scratch, *([] if weights else [self.folder / "model"])]:  # an earlier run may have kept it
            shutil.rmtree(folder, ignore_errors=True)
        current = {line.checkpoint for line in lines}
        for folder in (self.folder / "checkpoints").glob("*"):
            if folder.name not in current:  # left from a version of the study with other points
                shutil.rmtree(folder)
        return result

    # ---- candidates --------------------------------------------------------------------------------------------------

    def _context(self) -> CellContext:
        saves, keep = self.study.saves, self.study.keep
        keep = "final" if self.needed and keep == "none" else keep
        return CellContext(
            changes=self.cell.changes,
            seed=self.cell.seed,
            folder=self.folder,
            bench=self.start,
            untouched=self.untouched,
            sequence=self.cell.sequence,
            inputs=self.inputs,
            keep=keep,
            resumable=bool(saves) or keep != "none" or bool(self.examiner.exams.paired),
            saves=saves,
            examined=lambda point: point.name in self.found,
            select=lambda respondent: self.examiner.select(respondent, None),
            stages=self.cell.stages,
            report_to=self.study.report_to,
            on_step=self.on_step,
        )

    def _take_next(self, offered: Iterator[Candidate]) -> bool:
        """Examine the next candidate; return False if there is none. An error in its exams is raised inside the method,
        which may save what it has. No reference to the candidate remains afterwards."""
        candidate = next(offered, None)
        if candidate is None:
            return False
        try:
            self._examine(candidate)
        except BaseException as error:
            if isinstance(offered, Generator):
                offered.throw(error)
            raise
        self.notes += candidate.notes
        self.scratch += candidate.scratch
        return True

    # ---- exams -------------------------------------------------------------------------------------------------------

    def _at(self, point: Point) -> Path:
        """Return the folder of a point's samples."""
        return self.folder if point == END else self.folder / "checkpoints" / point.name

    def _find(self) -> None:
        """Read the results of every point whose exams an earlier run has finished."""
        files = {path.parent.name: path for path in sorted((self.folder / "checkpoints").glob(f"*/{EXAMINED}"))}
        for name, path in {**files, END.name: self.folder / EXAMINED}.items():
            known = read_part(path, PointResult)
            if known is not None and known.hash == self.key:
                self.found[name] = known

    def _examine(self, candidate: Candidate) -> None:
        """Examine a candidate, unless its point was already examined with the same weights."""
        point, respondent = candidate.point, candidate.respondent
        if point == END:
            self.end = replace(candidate, respondent=None)
            self.start.settle()
        if respondent is None:
            if point.name not in self.found:
                self._keep(point, "", (self._composed(),))
            return
        fingerprint, passed = respondent.fingerprint, candidate.passed
        known = {name: one for name, one in self.found.items() if one.fingerprint == fingerprint}
        if passed is not None and passed.name in known:
            self._take_over(passed, point)
            return
        if point.name in known:
            return
        if candidate.same is not None and candidate.same.name in known:
            self._take_over(candidate.same, point, keep=True)
            return
        taught = self.cell.changes if candidate.changes is None else self.cell.changes[: candidate.changes]
        floor = self.cell.method.name == NOISE_FLOOR
        folder = self._at(point)
        found = self.examiner.take(taught, respondent, point.name, folder, floor=floor)
        self._keep(point, fingerprint, self.examiner.examined(found, taught, point.name, candidate.step, folder))

    def _keep(self, point: Point, fingerprint: str, examined: tuple[Examined, ...]) -> None:
        """Keep the results of a point's exams and write them to its folder."""
        known = self.found.get(point.name)
        number = known.number if known is not None else 1 + max((one.number for one in self.found.values()), default=0)
        one = PointResult(hash=self.key, fingerprint=fingerprint, number=number, examined=examined)
        self.found[point.name] = one
        write_part(self._at(point) / EXAMINED, one)

    def _take_over(self, old: Point, new: Point, *, keep: bool = False) -> None:
        """Give an examined point's samples and results to another point, which is the same model. keep: both are
        points; otherwise the old one is a step at which training ended, and the end takes its place."""
        source, target = self._at(old), self._at(new)
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            if path.name == EXAMINED:
                continue
            into = target / path.name
            shutil.rmtree(into) if into.is_dir() else None
            if keep:
                shutil.copytree(path, into) if path.is_dir() else shutil.copyfile(path, into)
            else:
                path.replace(into)
        own = str(target.relative_to(self.root))
        known = self.found[old.name] if keep else self.found.pop(old.name)
        update = {"checkpoint": new.name, "folder": own}
        self._keep(new, known.fingerprint, tuple(one.model_copy(update=update) for one in known.examined))
        if not keep:
            shutil.rmtree(source)

    def _in_order(self) -> list[PointResult]:
        """Return every point that was examined, by this run or an earlier one. Optimiser steps come first, by their
        number; the other points follow in the order in which they were examined."""

        def rank(item: tuple[str, PointResult]) -> tuple[int, int]:
            step = item[1].examined[0].step
            return (0, step or 0) if item[0].startswith("step-") else (1, item[1].number)

        return [one for _, one in sorted(self.found.items(), key=rank)]

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _stages(self) -> dict[str, Any]:
        """Return the stages' names, scores before, score matrix (a row per candidate, a column per stage), its summary.
        A training of all stages at once has one row. The summary scores are added to the scores of the end."""
        stages, how = self.cell.stages, str(self.cell.method.model_dump()["stages"])
        keys = [self.examiner.headline(stage.measured_by) for stage in stages]
        untouched = self.examiner.scores_before
        before = [untouched[key] for key in keys]
        points = [Point("stage", stage.name).name for stage in stages]
        rows = [self.found[name].examined[0] for name in points if name in self.found]
        end = self.found[END.name]
        rows += [] if how == "separate" else [end.examined[0]]
        matrix = [[row.scores[key] for key in keys] for row in rows]
        found = separate_scores(matrix) if how == "separate" else transfer_scores(before, matrix)
        own = {f"stages.{name}": value for name, value in found.items() if name in TRANSFER}
        first = end.examined[0].model_copy(update={"scores": {**end.examined[0].scores, **own}})
        self.found[END.name] = end.model_copy(update={"examined": (first, *end.examined[1:])})
        names = [stage.name for stage in stages]
        return {"how": how, "names": names, "exams": keys, "before": before, "matrix": matrix, **found}

    def _composed(self) -> Examined:
        """Put the end together if each stage has a model of its own: take each stage's exam from that stage's model."""
        parts: dict[str, Any] = {"scores": {}, "ci95": {}, "n": {}}
        compare: dict[str, Comparison] = {}
        for stage in self.cell.stages:
            point, exam = Point("stage", stage.name), stage.measured_by
            one = self.found[point.name].examined[0]
            for part, values in parts.items():
                values |= {key: value for key, value in dict(one)[part].items() if key.startswith(f"{exam}.")}
            compare[exam] = one.compare[exam]
            samples = self.folder / "exams" / f"{safe_name(exam)}.jsonl"
            samples.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._at(point) / "exams" / samples.name, samples)
        drift = relative_changes(self.examiner.scores_before, parts["scores"], self.examiner.exams.info({}))
        folder = str(self.folder.relative_to(self.root))
        cost = {"exam_s": 0.0}  # each stage reports the cost of its exams
        return Examined(**parts, folder=folder, compare=compare, drift=drift, cost=cost)
