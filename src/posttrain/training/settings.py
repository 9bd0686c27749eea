"""The settings that make a run the one that it is, compared before anything is loaded or generated for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.training.checkpoints import IDENTITY, checkpoints_in, differences, refused, settings_in
from posttrain.training.config import TrainConfig

__all__ = ["check_settings", "settings_of"]

WITHOUT_EFFECT = {"output", "report_to", "data", "validation", "download", "earlier"}
WITHOUT_EFFECT |= {"save_every_steps", "save_at_steps", "keep_checkpoints"}
"""Settings that may change between a run and its resumption; data are compared by their tokens instead, what an earlier
task has left by its bytes."""


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What of a configuration decides the result."""
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in WITHOUT_EFFECT}
    if config.save_dtype == "auto":  # so that runs of before there was a choice go on
        del settings["save_dtype"]
    return settings


def check_settings(output: Path, config: TrainConfig) -> None:
    """ConfigError when the folder holds a finished run, or a checkpoint, of other settings than these.

    It reads two small files: a model of gigabytes and an hour of replay shall not come before such a refusal. What
    cannot be read yet (rows, weights) is compared when it is there. Labels and the like, which the rows may say, are
    not compared where the configuration leaves them out.
    """
    finished = (output / "result.json").is_file() and (output / "model").is_dir()
    newest = checkpoints_in(output / "checkpoints")
    if not finished and not newest:
        return
    made = output if finished else newest[max(newest)]
    before = settings_in(made / IDENTITY)
    now = json.loads(json.dumps(settings_of(config)))
    open_ = {key for key, value in now["objective"].items() if value is None}
    for settings in (before, now):
        settings["objective"] = {k: v for k, v in settings.get("objective", {}).items() if k not in open_}
    if changed := differences({"config": before}, {"config": now}):
        raise refused(made, changed)
