"""The files of an earlier run, kept aside while a new run starts over in its folder.

The earlier model stays in its place until the new one replaces it. The other files move into a folder of their own and
come back when the new run ends before it has saved anything to go on from. So a --restart by mistake loses nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.training.checkpoints import checkpoints_in

__all__ = ["ASIDE", "MODEL", "comes_back", "put_aside", "put_back", "remove"]

ASIDE = "before-restart"
"""Name of the folder for these files, inside that of the run."""
MODEL = "model"


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


def put_back(root: Path, names: Iterable[str]) -> bool:
    """Undo `put_aside` where the new run has left nothing to go on from; returns whether files came back."""
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


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def comes_back(output: Path, names: Iterable[str], say: Callable[[str], None]) -> Iterator[None]:
    """Let the files that stand aside come back when the block fails before it has saved a checkpoint."""
    try:
        yield
    except BaseException:
        if put_back(output, names):
            say(f"{output} is again as the earlier run has left it")
        raise
