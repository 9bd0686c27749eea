"""The checkpoints of a run: folders `step-12` that are whole or not there.

`models.disk.whole_folder` writes a checkpoint to `.tmp-step-12`, flushes it to disk (fsync), and only then renames it
to `step-12`. Whatever kills the process, a folder named `step-*` is complete; the next start removes the others.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

__all__ = ["FINGERPRINT", "checkpoints_in", "remove_leftovers", "rotate"]

FINGERPRINT = "posttrain_run.json"
"""In every checkpoint, and in the folder of a run: its fingerprint, see `fingerprint.py`."""


def remove_leftovers(folder: Path) -> list[str]:
    """Remove the unfinished files and folders of a killed run; returns their names."""
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
