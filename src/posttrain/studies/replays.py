"""What the model of a cell will be asked for its replay, looked at before anything is loaded; for `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.inference.encoding import PromptReader
from posttrain.inference.opening import read_prompts
from posttrain.retention.selection import ReplayConfig
from posttrain.studies.config import Study
from posttrain.studies.methods.train import TrainMethodConfig
from posttrain.studies.plan import Cell, find_model

__all__ = ["check_replays", "reader_of"]


def check_replays(study: Study, cells: Sequence[Cell], base: Path) -> list[str]:
    """What has to be said of the replays. DataError with every prompt and row that one could not use, each once."""
    readers: dict[str, PromptReader] = {}
    seen: set[str] = set()
    problems: list[Problem] = []
    said: dict[str, None] = {}
    for cell in cells:
        method = cell.method
        if not isinstance(method, TrainMethodConfig) or not isinstance(method.replay, ReplayConfig):
            continue
        replay = method.replay.for_change(cell.change_name) if cell.change is not None else method.replay
        key = f"{cell.model} {cell.seed} {replay.model_dump_json(exclude={'share', 'weight', 'loss'})}"
        if key in seen:
            continue
        seen.add(key)
        if cell.model not in readers:
            readers[cell.model] = reader_of(study, cell.model, base)
        try:
            replay.check(base, readers[cell.model], cell.seed)
            if short := replay.shortage(base, readers[cell.model].tokenizer):
                said[f"method '{method.label}': {short}"] = None
        except PosttrainError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise DataError(*problems)
    return list(said)


def reader_of(study: Study, model: str, base: Path) -> PromptReader:
    """Tokenizer, embeddings and positions of a model, by its files without the weights."""
    found, _ = find_model(model, base)
    return read_prompts(found, offline=not study.download, trust_remote_code=study.trust_remote_code)
