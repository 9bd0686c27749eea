"""Manage what a run finds in its folder when it starts: checkpoints, fingerprints, and the files of an earlier run.

Checkpoints are folders such as `step-12`. `models.disk.whole_folder` gives them this name when they are complete and on
the disk. However the process ends, a folder named `step-*` is complete; the next start removes the others.

A run continues in a folder only if the fingerprint is the same: settings, and hashes of weights, template and rows. The
fingerprint is a mapping and not one hash, so that an error can name every difference. `rows.run_fingerprint` makes it.

When a new run starts from the beginning, the files of the earlier run are moved into a folder of their own; its model
stays where it is until the new model replaces it. The files are moved back if the new run ends before it has saved a
checkpoint, so that a --restart by mistake loses nothing. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem, TrainingError
from posttrain.training.config import TrainConfig

__all__ = [
    "ASIDE",
    "FINGERPRINT",
    "check_fingerprint",
    "check_settings",
    "checkpoints_in",
    "comes_back",
    "differences",
    "file_fingerprint",
    "made_by",
    "put_aside",
    "remove",
    "remove_leftovers",
    "rotate",
    "settings_of",
]

FINGERPRINT = "posttrain_run.json"
"""File in every checkpoint and in the folder of a run: the run's fingerprint."""
ASIDE = "before-restart"
"""Name of the folder for the files of an earlier run, inside the folder of the run."""
MODEL = "model"
"""Name of the folder for the trained model, inside that of the run."""
WITHOUT_EFFECT = {"output", "report_to", "data", "validation", "download", "earlier"}
WITHOUT_EFFECT |= {"save_every_steps", "save_at_steps", "keep_checkpoints"}
"""Settings that may differ between a run and its resumption. Data are compared by their tokens instead, and files of an
earlier task by their bytes.
"""


def remove_leftovers(folder: Path) -> list[str]:
    """Remove the unfinished files and folders that a killed run left; return their names."""
    left = sorted(folder.glob(".tmp-*")) if folder.is_dir() else []
    for path in left:
        remove(path)
    return [path.name for path in left]


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Return step -> folder for every complete checkpoint, sorted by step."""
    found = {}
    for path in folder.glob("step-*") if folder.is_dir() else []:
        if match := re.fullmatch(r"step-(\d+)", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def made_by(output: Path) -> Path | None:
    """Return the folder that holds the fingerprint a run must have to continue here; None if any run may begin."""
    finished = (output / "result.json").is_file() and (output / MODEL).is_dir()
    saved = checkpoints_in(output / "checkpoints")
    return output if finished else saved[max(saved)] if saved else None


def rotate(folder: Path, keep: int | None, best_step: int | None) -> None:
    """Remove all checkpoints except the newest `keep` ones and the best one."""
    steps = list(checkpoints_in(folder).items())
    for step, path in steps[:-keep] if keep else []:
        if step != best_step:
            doomed = path.with_name(f".tmp-old-{path.name}")  # renamed first: no half-removed folder is named step-*
            path.rename(doomed)
            shutil.rmtree(doomed)


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that affect the result. Of a model that a cell of a study has left, the path within the run
    folder counts: the run folder may be spelled in several ways, and be moved."""
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in WITHOUT_EFFECT}
    settings["model"] = re.sub(r"^.*[/\\](?=cells[/\\][^/\\]*--)", "", settings["model"])
    if config.save_dtype == "auto":  # so that runs that began before this setting existed can be resumed
        del settings["save_dtype"]
    return settings


def check_settings(output: Path, config: TrainConfig) -> None:
    """Raise ConfigError if the folder holds a finished run or a checkpoint that has other settings.

    It reads two small files, so that the error comes before gigabytes of weights are loaded and before replay rows are
    made for an hour. Rows and weights are compared later, when they are available. Settings such as labels, which may
    come from the rows, are not compared if the configuration leaves them out.
    """
    made = made_by(output)
    if made is None:
        return
    before, now = _read(made / FINGERPRINT)["config"], json.loads(json.dumps(settings_of(config)))
    open_ = {key for key, value in now["objective"].items() if value is None}
    for settings in (before, now):
        settings["objective"] = {k: v for k, v in settings.get("objective", {}).items() if k not in open_}
    _refuse(made, differences({"config": before}, {"config": now}))


def check_fingerprint(folder: Path, fingerprint: dict[str, Any], *, but: Collection[str] = ()) -> None:
    """Raise ConfigError with every difference if the run or checkpoint in the folder has another fingerprint. but: keys
    that are not known yet and are therefore not compared.
    """
    before, now = _read(folder / FINGERPRINT), json.loads(json.dumps(fingerprint))
    _refuse(folder, differences(*({k: v for k, v in one.items() if k not in but} for one in (before, now))))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the differences between two nested mappings, each as `key: old -> new`."""
    old, new = _flat(before), _flat(now)
    keys = [*old, *(key for key in new if key not in old)]
    return [
        f"{key}: {old.get(key, 'not there')} -> {new.get(key, 'not there')}"
        for key in keys
        if key not in old or key not in new or old[key] != new[key]
    ]


def file_fingerprint(path: Path) -> str:
    """Return the first 16 hex digits of the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to `a.b.c` -> value."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}


def _refuse(folder: Path, changed: Sequence[str]) -> None:
    if changed:
        mend = "undo the change, choose another output folder, or start over with --restart"
        head = Problem(str(folder), "was made by another configuration and is not resumed", mend)
        raise ConfigError(head, *(Problem("", line) for line in changed))


def _read(path: Path) -> dict[str, Any]:
    """Return the fingerprint in a file. Raise TrainingError if it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            Problem(str(path), f"cannot be read: {error}", "remove the checkpoint, or start over with --restart")
        ) from error
    return found


def put_aside(root: Path, names: Iterable[str]) -> bool:
    """Move the files of an earlier run aside for a new run; return whether files of an earlier run are kept.

    They are kept until the new run has saved its model. names: the files and folders that runs write. If there is
    neither a model nor a checkpoint, nothing is worth keeping, and the files are removed. Files that are already aside,
    because the run after them did not finish, stay there.
    """
    aside = root / ASIDE
    finished = (root / "result.json").is_file()
    if aside.is_dir() and finished:  # the process was killed between saving the model and removing the old files
        shutil.rmtree(aside)
    keep = not aside.is_dir() and ((root / MODEL).is_dir() or bool(checkpoints_in(root / "checkpoints")))
    if keep:
        aside.mkdir()
    for name in names:
        path = root / name
        if name == MODEL or not path.exists():
            continue
        if keep:
            path.rename(aside / name)
        else:
            remove(path)
    return aside.is_dir()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def comes_back(output: Path, names: Iterable[str], say: Callable[[str], None]) -> Iterator[None]:
    """Undo `put_aside` if the block fails before it has saved a checkpoint."""
    try:
        yield
    except BaseException:
        aside = output / ASIDE
        if aside.is_dir() and not checkpoints_in(output / "checkpoints"):
            for name in names:
                if name != MODEL:
                    remove(output / name)
            for path in aside.iterdir():
                path.rename(output / path.name)
            aside.rmdir()
            say(f"{output} is again as the earlier run has left it")
        raise
