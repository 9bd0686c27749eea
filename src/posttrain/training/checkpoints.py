"""Checkpoints that are whole or not there.

A checkpoint is written to `.tmp-step-12`, every file and the folder are flushed to disk (fsync), and only then it is
renamed to `step-12`. Whatever kills the process, a folder named `step-*` is complete; what a kill left behind is
removed when the run starts again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem, TrainingError
from posttrain.models.disk import as_umask_says, write_whole, writing

__all__ = [
    "IDENTITY",
    "check_identity",
    "checkpoints_in",
    "differences",
    "flush_folder",
    "refused",
    "remove_leftovers",
    "rotate",
    "settings_in",
    "whole_folder",
    "write_text",
]

IDENTITY = "posttrain_run.json"
"""In every checkpoint: the configuration and the fingerprints of what went into the run."""


def flush_folder(folder: Path) -> None:
    """Ask the disk to keep every file below a folder, and the folder's list of names."""
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_names(path)
        else:
            with path.open("r+b") as file:
                os.fsync(file.fileno())
    flush_names(folder)


@contextmanager
def whole_folder(final: Path, *, main: bool = True) -> Iterator[Path]:
    """Give a temporary folder to write into; when the block ends well it becomes `final`, which must not exist.

    When the block fails, of a full disk (DiskError) or otherwise, nothing of it is left.

    main: False on the other processes of a distributed run, which write beside the main one and rename nothing.
    """
    temporary = final.with_name(f".tmp-{final.name}")
    with writing(final, *([temporary] if main else [])):
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        yield temporary
        if main:
            as_umask_says(temporary)
            flush_folder(temporary)
            temporary.rename(final)
            flush_names(final.parent)


def flush_names(folder: Path) -> None:
    """Ask the disk to keep a folder's list of names, after a rename. Windows opens no folders, and keeps it itself."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole."""
    write_whole(path, text, flush=True)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what a killed run left half-written; the names of what was removed."""
    left = sorted(folder.glob(".tmp-*")) if folder.is_dir() else []
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in left]


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Step -> folder of every complete checkpoint, in order."""
    found = {}
    for path in folder.glob("step-*") if folder.is_dir() else []:
        if match := re.fullmatch(r"step-(\d+)", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def rotate(folder: Path, keep: int | None, best_step: int | None) -> None:
    """Remove all checkpoints but the newest `keep` and the best one."""
    steps = list(checkpoints_in(folder).items())
    for step, path in steps[:-keep] if keep else []:
        if step != best_step:
            doomed = path.with_name(f".tmp-old-{path.name}")  # renamed first: no half-removed folder is named step-*
            path.rename(doomed)
            shutil.rmtree(doomed)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as `a.b.c` -> value."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}" if prefix else key).items()}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two nested mappings, one `key: old -> new` each."""
    old, new = flat(before), flat(now)
    keys = [*old, *(key for key in new if key not in old)]
    return [
        f"{key}: {old.get(key, 'not there')} -> {new.get(key, 'not there')}"
        for key in keys
        if key not in old or key not in new or old[key] != new[key]
    ]


def check_identity(checkpoint: Path, identity: dict[str, Any], *, but: Collection[str] = ()) -> None:
    """ConfigError with every difference unless the checkpoint belongs to a run with the same identity.

    but: its keys that are not known yet and not compared.
    """
    before = identity_in(checkpoint / IDENTITY)
    now = json.loads(json.dumps(identity))
    both = ({k: v for k, v in one.items() if k not in but} for one in (before, now))
    if changed := differences(*both):
        raise refused(checkpoint, changed)


def refused(folder: Path, changed: Sequence[str]) -> ConfigError:
    """What is said of a folder that another run has made. changed: as `differences` tells it."""
    mend = "undo the change, choose another output folder, or start over with --restart"
    head = Problem(str(folder), "was made by another configuration and is not resumed", mend)
    return ConfigError(head, *(Problem("", line) for line in changed))


def identity_in(path: Path) -> dict[str, Any]:
    """The identity that a run or a checkpoint has noted. TrainingError where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            Problem(str(path), f"cannot be read: {error}", "remove the checkpoint, or start over with --restart")
        ) from error
    return found


def settings_in(path: Path) -> dict[str, Any]:
    """The settings in such an identity."""
    found: dict[str, Any] = identity_in(path)["config"]
    return found
