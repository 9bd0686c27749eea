"""What the model of a cell will be asked for its replay, looked at before anything is loaded; for `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.inference.encoding import PromptReader
from posttrain.inference.opening import read_prompts
from posttrain.retention.selection import ReplayConfig
from posttrain.studies.config import Study
from posttrain.studies.models import find_model
from posttrain.studies.plan import Cell
from posttrain.studies.train_config import TrainMethodConfig

__all__ = ["Readers", "check_replays"]


class Readers:
    """What the models of a study make of prompts, by their files without the weights; each is read once."""

    def __init__(self, study: Study, base: Path) -> None:
        self.study, self.base = study, base
        self._known: dict[str, PromptReader] = {}

    def __getitem__(self, model: str) -> PromptReader:
        if model not in self._known:
            found, _ = find_model(model, self.base)
            how = {"offline": not self.study.download, "trust_remote_code": self.study.trust_remote_code}
            self._known[model] = read_prompts(found, **how)
        return self._known[model]


def check_replays(readers: Readers, cells: Sequence[Cell]) -> list[str]:
    """What has to be said of the replays. DataError with every prompt and row that one could not use, each once."""
    seen: set[str] = set()
    problems: list[Problem] = []
    said: dict[str, None] = {}
    for cell in cells:
        for method in cell.method.parts:
            if not isinstance(method, TrainMethodConfig) or not isinstance(method.replay, ReplayConfig):
                continue
            replay = method.replay.for_change(cell.names[0])
            key = f"{cell.model} {cell.seed} {replay.model_dump_json(exclude={'share', 'weight', 'loss'})}"
            if key in seen:
                continue
            seen.add(key)
            try:
                if short := replay.check(readers.base, readers[cell.model], cell.seed):
                    said[f"method '{cell.method.label}': {short}"] = None
            except PosttrainError as error:
                problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise DataError(*problems)
    return list(said)
