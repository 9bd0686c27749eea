"""The fingerprint of a run: its settings, and digests of its weights, template and rows.

Only a run of the same fingerprint goes on in a folder. It is a mapping and not one digest, so that a refusal can name
every difference. `rows.run_fingerprint` makes it; this module compares, and needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem, TrainingError
from posttrain.training.checkpoints import FINGERPRINT, checkpoints_in
from posttrain.training.config import TrainConfig

__all__ = ["check_fingerprint", "check_settings", "differences", "file_fingerprint", "settings_of"]

WITHOUT_EFFECT = {"output", "report_to", "data", "validation", "download", "earlier"}
WITHOUT_EFFECT |= {"save_every_steps", "save_at_steps", "keep_checkpoints"}
"""Settings that may change between a run and its resumption. Data are compared by their tokens instead, files of an
earlier task by their bytes."""


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the result."""
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in WITHOUT_EFFECT}
    if config.save_dtype == "auto":  # so that runs from before this setting go on
        del settings["save_dtype"]
    return settings


def check_settings(output: Path, config: TrainConfig) -> None:
    """ConfigError when the folder holds a finished run, or a checkpoint, of other settings than these.

    It reads two small files, so that such a refusal comes before gigabytes of weights are loaded and replay is made for
    an hour. Rows and weights are compared when they are there. Labels and the like, which may come from the rows, are
    not compared where the configuration leaves them out.
    """
    finished = (output / "result.json").is_file() and (output / "model").is_dir()
    saved = checkpoints_in(output / "checkpoints")
    if not finished and not saved:
        return
    made = output if finished else saved[max(saved)]
    before, now = _read(made / FINGERPRINT)["config"], json.loads(json.dumps(settings_of(config)))
    open_ = {key for key, value in now["objective"].items() if value is None}
    for settings in (before, now):
        settings["objective"] = {k: v for k, v in settings.get("objective", {}).items() if k not in open_}
    _refuse(made, differences({"config": before}, {"config": now}))


def check_fingerprint(folder: Path, fingerprint: dict[str, Any], *, but: Collection[str] = ()) -> None:
    """ConfigError with every difference unless the run or checkpoint in the folder has the same fingerprint.

    but: keys that are not known yet and not compared.
    """
    before, now = _read(folder / FINGERPRINT), json.loads(json.dumps(fingerprint))
    _refuse(folder, differences(*({k: v for k, v in one.items() if k not in but} for one in (before, now))))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The changes between two nested mappings, one `key: old -> new` each."""
    old, new = _flat(before), _flat(now)
    keys = [*old, *(key for key in new if key not in old)]
    return [
        f"{key}: {old.get(key, 'not there')} -> {new.get(key, 'not there')}"
        for key in keys
        if key not in old or key not in new or old[key] != new[key]
    ]


def file_fingerprint(path: Path) -> str:
    """First 16 hex digits of the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as `a.b.c` -> value."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}


def _refuse(folder: Path, changed: Sequence[str]) -> None:
    if changed:
        mend = "undo the change, choose another output folder, or start over with --restart"
        head = Problem(str(folder), "was made by another configuration and is not resumed", mend)
        raise ConfigError(head, *(Problem("", line) for line in changed))


def _read(path: Path) -> dict[str, Any]:
    """The fingerprint in a file. TrainingError where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            Problem(str(path), f"cannot be read: {error}", "remove the checkpoint, or start over with --restart")
        ) from error
    return found
