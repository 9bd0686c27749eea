"""One cell at work: the method, and the exams of its checkpoints and of its end.

A checkpoint's result is written beside its samples as soon as its exams are over; the cell's own is written last.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain import registry
from posttrain.inference.protocol import Respondent
from posttrain.studies.bench import Bench
from posttrain.studies.card import card
from posttrain.studies.config import Study
from posttrain.studies.context import MethodContext, MethodResult
from posttrain.studies.examine import Examiner
from posttrain.studies.plan import Cell
from posttrain.studies.results import CellResult, Examined, read_examined, write_examined, write_lines, write_text

__all__ = ["EXAMINED", "CellRun"]

EXAMINED = "examined.json"
"""Beside the samples of a checkpoint: its exams are over."""


class CellRun:
    """One cell at work: the method, and the exams of its checkpoints and of its end."""

    def __init__(
        self,
        cell: Cell,
        key: str,
        study: Study,
        bench: Bench,
        examiner: Examiner,
        base: Path,
        place: Path,
        say: Callable[[str], None],
        on_step: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.cell, self.key, self.study, self.bench, self.examiner = cell, key, study, bench, examiner
        self.base, self.place, self.say, self.on_step = base, place, say, on_step
        self.found: dict[int, Examined] = {}  # by step

    def run(self) -> CellResult:
        cell, began = self.cell, time.monotonic()
        saves = self.study.saves
        context = MethodContext(
            change=cell.change,
            seed=cell.seed,
            base=self.base,
            folder=self.place,
            key=self.key,
            before=self.bench.before,
            working=self.bench.working,
            load=self.bench.load,
            replay=self.bench.replay,
            forbidden=self.bench.forbidden,
            keep=self.study.keep,
            resumable=bool(saves) or self.study.keep != "none" or bool(self.examiner.exams.tasks),
            saves=saves,
            examine=self.examine,
            examined=self.examined,
            forget=self.forget,
            say=self.say,
            on_step=self.on_step,
        )
        made: MethodResult = registry.load("method", cell.method.kind).function(cell.method, context)
        write_lines(self.place / "metrics.jsonl", made.metrics)
        self.bench.settle()
        final = self._final(made)
        examined = [*(self.found[step] for step in sorted(self.found)), final]
        exam_s = sum(one.cost["exam_s"] for one in examined)
        wall_s = max(time.monotonic() - began, exam_s + made.cost.get("train_s", 0.0))  # of earlier runs, too
        result = CellResult(
            self.key,
            cell.model,
            cell.method.label,
            cell.change_name,
            cell.seed,
            "done",
            examined=examined,
            cost={"wall_s": wall_s, "exam_s": exam_s, **made.cost},
            weights=str(made.weights.relative_to(self.examiner.folder)) if made.weights else "",
        )
        notes = dict.fromkeys([*made.notes, *(note for one in examined for note in one.notes)])
        write_text(self.place / "card.md", card(cell, result, list(notes)))
        for folder in made.scratch:
            shutil.rmtree(folder, ignore_errors=True)
        current = {one.checkpoint for one in examined}
        for folder in (self.place / "checkpoints").glob("step-*"):
            if folder.name not in current:  # of a study that asked for other steps
                shutil.rmtree(folder)
        return result

    def at(self, step: int) -> Path:
        """Where the samples of a checkpoint are."""
        return self.place / "checkpoints" / f"step-{step}"

    def examined(self, step: int) -> bool:
        """Whether the exams of a step are over; what they found is taken up."""
        if step not in self.found:
            known = read_examined(self.at(step) / EXAMINED, self.key)
            if known is not None:
                self.found[step] = known
        return step in self.found

    def forget(self) -> None:
        """Training begins anew: what its checkpoints scored is void. Samples stay, for weights that come out equal."""
        self.found.clear()
        for path in self.place.glob(f"checkpoints/step-*/{EXAMINED}"):
            path.unlink()

    def examine(self, respondent: Respondent, step: int) -> None:
        """The exams in the middle of training."""
        if not self.examined(step):
            one = self.examiner.examine(self.cell, respondent, f"step-{step}", step, self.at(step))
            write_examined(self.at(step) / EXAMINED, self.key, one)
            self.found[step] = one

    def _final(self, made: MethodResult) -> Examined:
        """The exams at the end. Where training ended at a step that was examined, that is the end."""
        known = read_examined(self.place / EXAMINED, self.key)
        if known is not None:
            return known
        step = int(made.cost["steps"]) if "steps" in made.cost else None
        if step is not None and self.examined(step):
            for path in self.at(step).iterdir():
                if path.name != EXAMINED:
                    shutil.rmtree(self.place / path.name) if (self.place / path.name).is_dir() else None
                    path.replace(self.place / path.name)
            folder = str(self.place.relative_to(self.examiner.folder))
            final = replace(self.found.pop(step), checkpoint="final", folder=folder)
        else:
            final = self.examiner.examine(self.cell, made.respondent, "final", step, self.place)
        write_examined(self.place / EXAMINED, self.key, final)
        return final
