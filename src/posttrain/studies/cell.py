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
from posttrain.exams.capabilities import relative_changes
from posttrain.exams.transfer import separate_scores, transfer_scores
from posttrain.inference.protocol import Respondent
from posttrain.models.memory import peak_gib, peak_memory
from posttrain.studies.bench import Bench
from posttrain.studies.card import card
from posttrain.studies.config import Study, safe_name
from posttrain.studies.context import MethodContext, MethodResult
from posttrain.studies.examine import Examiner
from posttrain.studies.plan import Cell
from posttrain.studies.results import CellResult, Examined, read_examined, write_examined, write_text

__all__ = ["EXAMINED", "CellRun"]

TRANSFER = ("acc", "bwt", "fwt", "forgetting")
"""What a matrix of stages comes to: `stages.acc` and so on among the scores."""

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
        self.named: dict[str, Examined] = {}  # checkpoints that have a name and no step

    @peak_memory()
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
            lent=self.bench.lent,
            load=self.bench.load,
            replay=self.bench.replay,
            forbidden=self.bench.forbidden,
            keep=self.study.keep,
            resumable=bool(saves) or self.study.keep != "none" or bool(self.examiner.exams.tasks),
            saves=saves,
            examine=self.examine,
            examined=self.examined,
            forget=self.forget,
            stages=cell.stages,
            examine_as=self.examine_as,
            examined_as=self.examined_as,
            rehearse=self.bench.rehearse,
            report_to=self.study.report_to,
            say=self.say,
            on_step=self.on_step,
        )
        (self.place / "metrics.jsonl").touch()  # a training appends to it
        made: MethodResult = registry.load("method", cell.method.kind).function(cell.method, context)
        self.bench.settle()
        final = self._composed() if made.stages == "separate" else self._final(made)
        stages = self._stages(made.stages, final) if made.stages else {}
        own = {f"stages.{name}": value for name, value in stages.items() if name in TRANSFER}
        final = replace(final, scores={**final.scores, **own})
        before, after = (
            [one for name, one in self.named.items() if name.startswith("merge-") is merged] for merged in (False, True)
        )
        examined = [*(self.found[step] for step in sorted(self.found)), *before, final, *after]
        exam_s = sum(one.cost["exam_s"] for one in examined)
        wall_s = max(time.monotonic() - began, exam_s + made.cost.get("train_s", 0.0))  # of earlier runs, too
        peak = max(peak_gib(), made.cost.get("peak_gib", 0.0))  # of earlier runs, too
        result = CellResult(
            self.key,
            cell.model,
            cell.method.label,
            cell.change_name,
            cell.seed,
            "done",
            examined=examined,
            cost={"wall_s": wall_s, "exam_s": exam_s, **made.cost, "peak_gib": peak},
            weights=str(made.weights.relative_to(self.examiner.folder)) if made.weights else "",
            stages=stages,
        )
        notes = dict.fromkeys([*made.notes, *(note for one in examined for note in one.notes)])
        write_text(self.place / "card.md", card(cell, result, list(notes)))
        for folder in made.scratch:
            shutil.rmtree(folder, ignore_errors=True)
        current = {one.checkpoint for one in examined}
        for folder in (self.place / "checkpoints").glob("*-*"):
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

    def examined_as(self, name: str) -> bool:
        """Whether the exams of a checkpoint that has a name and no step are over."""
        if name not in self.named:
            known = read_examined(self.place / "checkpoints" / name / EXAMINED, self.key)
            if known is not None:
                self.named[name] = known
        return name in self.named

    def examine_as(self, respondent: Respondent, name: str) -> None:
        """The exams of a checkpoint that has a name and no step."""
        if not self.examined_as(name):
            place = self.place / "checkpoints" / name
            one = self.examiner.examine(self.cell, respondent, name, None, place)
            write_examined(place / EXAMINED, self.key, one)
            self.named[name] = one

    def _stages(self, how: str, final: Examined) -> dict[str, Any]:
        """Names, scores before, the matrix and what it comes to; in a training of all stages at once, one row."""
        stages = self.cell.stages
        keys = [self.examiner.headline(stage.measured_by) for stage in stages]
        untouched = self.examiner.scores_before
        before = [untouched[key] for key in keys]
        rows = [self.named[stage.checkpoint] for stage in stages if stage.checkpoint in self.named]
        rows += [] if how == "separate" else [final]
        matrix = [[row.scores[key] for key in keys] for row in rows]
        found = separate_scores(matrix) if how == "separate" else transfer_scores(before, matrix)
        names = [stage.name for stage in stages]
        return {"how": how, "names": names, "exams": keys, "before": before, "matrix": matrix, **found}

    def _composed(self) -> Examined:
        """Where each stage has a model of its own: each stage's exam as its own model took it."""
        scores: dict[str, float] = {}
        ci95: dict[str, tuple[float, float]] = {}
        n: dict[str, int] = {}
        compare: dict[str, Mapping[str, Any]] = {}
        for stage in self.cell.stages:
            one, exam = self.named[stage.checkpoint], stage.measured_by
            own = [key for key in one.scores if key.startswith(f"{exam}.")]
            scores |= {key: one.scores[key] for key in own}
            ci95 |= {key: one.ci95[key] for key in own if key in one.ci95}
            n |= {key: one.n[key] for key in own if key in one.n}
            compare[exam] = one.compare[exam]
            samples = self.place / "exams" / f"{safe_name(exam)}.jsonl"
            samples.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.place / "checkpoints" / stage.checkpoint / "exams" / samples.name, samples)
        drift = relative_changes(self.examiner.scores_before, scores, self.examiner.exams.info({}))
        folder = str(self.place.relative_to(self.examiner.folder))
        cost = {"exam_s": 0.0}  # what the exams have cost is told with each stage
        return Examined("final", scores, ci95, n, folder, compare=compare, drift=drift, cost=cost)

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
