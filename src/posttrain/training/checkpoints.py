"""What a run finds in its folder when it starts: checkpoints, fingerprints, and the files of an earlier run.

Checkpoints are folders `step-12`, which `models.disk.whole_folder` renames when they are complete and on the disk.
Whatever kills the process, a folder named `step-*` is complete; the next start removes the others.

Only a run of the same fingerprint goes on in a folder: settings, and digests of weights, template and rows. It is a
mapping and not one digest, so that a refusal can name every difference. `rows.run_fingerprint` makes it.

When a new run starts over, the files of the earlier one move into a folder of their own; its model stays in its place
until the new one replaces it. They come back when the new run ends before it has saved anything to go on from, so that
a --restart by mistake loses nothing. This module needs no torch.
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
"""In every checkpoint, and in the folder of a run: its fingerprint."""
ASIDE = "before-restart"
"""Name of the folder for the files of an earlier run, inside that of the run."""
MODEL = "model"
WITHOUT_EFFECT = {"output", "report_to", "data", "validation", "download", "earlier"}
WITHOUT_EFFECT |= {"save_every_steps", "save_at_steps", "keep_checkpoints"}
"""Settings that may change between a run and its resumption. Data are compared by their tokens instead, files of an
earlier task by their bytes."""


def remove_leftovers(folder: Path) -> list[str]:
    """Remove the unfinished files and folders of a killed run; returns their names."""
    left = sorted(folder.glob(".tmp-*")) if folder.is_dir() else []
    for path in left:
        remove(path)
    return [path.name for path in left]


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Step -> folder of every complete checkpoint, in order."""
    found = {}
    for path in folder.glob("step-*") if folder.is_dir() else []:
        if match := re.fullmatch(r"step-(\d+)", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def made_by(output: Path) -> Path | None:
    """The folder with the fingerprint that a run must have to go on here; None where any run may begin."""
    finished = (output / "result.json").is_file() and (output / MODEL).is_dir()
    saved = checkpoints_in(output / "checkpoints")
    return output if finished else saved[max(saved)] if saved else None


def rotate(folder: Path, keep: int | None, best_step: int | None) -> None:
    """Remove all checkpoints but the newest `keep` and the best one."""
    steps = list(checkpoints_in(folder).items())
    for step, path in steps[:-keep] if keep else []:
        if step != best_step:
            doomed = path.with_name(f".tmp-old-{path.name}")  # renamed first: no half-removed folder is named step-*
            path.rename(doomed)
            shutil.rmtree(doomed)


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
    made = made_by(output)
    if made is None:
        return
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


def put_aside(root: Path, names: Iterable[str]) -> bool:
    """Make room for a new run; returns whether files of an earlier one are kept until the new one has saved its model.

    names: the files and folders that runs write. Without a model and checkpoints nothing is worth keeping, and they are
    removed. Files that stand aside already, because the run after them did not finish, stay there.
    """
    aside = root / ASIDE
    finished = (root / "result.json").is_file()
    if aside.is_dir() and finished:  # a kill came between saving the model and tidying up
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
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def comes_back(output: Path, names: Iterable[str], say: Callable[[str], None]) -> Iterator[None]:
    """Undo `put_aside` when the block fails before it has saved a checkpoint to go on from."""
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
