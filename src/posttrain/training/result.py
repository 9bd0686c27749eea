"""The result of a training, also as read from the folder of a run that has finished before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.load import LoadedModel
from posttrain.training.folder import RunFolder
from posttrain.training.metrics import MetricsLog
from posttrain.tuners._moved import Moved

__all__ = ["TrainResult", "finished_result", "finished_run"]


class TrainResult(NamedTuple):
    """A trained model and what the training cost.

    loss_nats: of the last step, per supervised token; tokens: read in all, without padding; history: as in
    metrics.jsonl; stopped: why the run ended before its last step, else ""; best_step: the step of these weights where
    validation chose them.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    steps: int
    loss_nats: float
    tokens: int
    wall_s: float
    peak_gib: float
    history: list[dict[str, Any]]
    moved: Moved
    stopped: str = ""
    best_step: int | None = None


def finished_run(output: Path, load: Callable[[Path], LoadedModel]) -> TrainResult | None:
    """The result of a run that has finished in this folder, whatever went into it; None when none has."""
    folder = RunFolder(output)
    done = folder.result_in()
    return finished_result(folder, done, load) if done is not None else None


def finished_result(folder: RunFolder, done: dict[str, Any], load: Callable[[Path], LoadedModel]) -> TrainResult:
    """The result of a run that was finished before, read back from its folder."""
    loaded = load(folder.model)
    log = MetricsLog(folder.metrics)
    log.read(int(done["steps"]))
    told = {**done, "moved": Moved(*done["moved"]), "history": log.history}
    return TrainResult(loaded.model, loaded.tokenizer, **told)
