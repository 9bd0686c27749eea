"""What an earlier run has left, kept aside while a new one starts over in its folder.

Its model stays where it is until the new one takes its place; the other files go into a folder of their own and come
back when the new run ends before it has saved anything to go on from. A --restart by mistake costs nothing so.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from posttrain.training.checkpoints import checkpoints_in
from posttrain.training.progress import RunProgress

__all__ = ["ASIDE", "MODEL", "drop", "put_aside", "put_back", "puts_back"]

P = ParamSpec("P")
T = TypeVar("T")

ASIDE = "before-restart"
"""The folder's name in that of the run."""
MODEL = "model"


def put_aside(root: Path, names: Iterable[str]) -> bool:
    """Make room for a new run; whether something of an earlier one is kept until the new one has saved its model.

    names: what runs write. Without a model and checkpoints there is nothing to keep: the rest is removed. What stands
    aside already, of a run before one that did not finish, stays there.
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


def put_back(root: Path, names: Iterable[str]) -> bool:
    """Undo `put_aside` where the new run has left nothing to go on from; whether something came back."""
    aside = root / ASIDE
    if not aside.is_dir() or checkpoints_in(root / "checkpoints"):
        return False
    for name in names:
        if name != MODEL:
            remove(root / name)
    for path in aside.iterdir():
        path.rename(root / path.name)
    aside.rmdir()
    return True


def drop(root: Path) -> None:
    """The new model is saved: what the earlier run has left is of no use any more."""
    remove(root / ASIDE)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def puts_back(names: Iterable[str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """For a function that trains into the folder given as `output`: what it put aside comes back when it fails early.

    It is said through its `progress`. Under torchrun the first process does it for all.
    """

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def undone(*args: P.args, **named: P.kwargs) -> T:
            try:
                return function(*args, **named)
            except BaseException:
                output, progress = named.get("output"), named.get("progress")
                main = os.environ.get("RANK", "0") == "0"
                if isinstance(output, Path) and main and put_back(output, names) and progress is not None:
                    cast(RunProgress, progress).say(f"{output} is again as the earlier run has left it")
                raise

        return undone

    return wrap
