"""Allow one writer per folder, by a lock of the operating system on a file in the folder.

The system releases the lock however the process ends, so a lock file that a killed process left blocks no later run.
The file is removed when the work is done.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from posttrain.errors import PosttrainError, Problem

__all__ = ["LOCK", "check_free", "only_one"]

LOCK = ".lock"
"""Name of the lock file in the folder."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder during the block. The folder is made if it does not exist.

    Raise PosttrainError if another run holds the lock, in this process or in another one. A folder that cannot be
    written to is not locked, since no run can write there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    file = _held(path)
    if file is None:
        yield
        return
    try:
        yield
    finally:
        if sys.platform != "win32":  # there an open file cannot be removed
            path.unlink(missing_ok=True)
        file.close()
        if made and not any(folder.iterdir()):
            folder.rmdir()


def check_free(folder: Path) -> None:
    """Raise PosttrainError if another run holds the lock of the folder at this moment."""
    path = folder / LOCK
    if os.environ.get("RANK", "0") == "0" and path.is_file():
        with only_one(folder):
            return


def _held(path: Path) -> IO[str] | None:
    """Open the lock file, lock it and return it; return None if nothing can be written there. Raise PosttrainError if
    another run holds the lock."""
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno == errno.EROFS:
                return None
            raise
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(file)
            file.close()
            who = f" (process {holder})" if holder not in (None, os.getpid()) else ""
            cause = f"another run{who} is working in this folder"
            raise PosttrainError(Problem(str(path.parent), cause, "wait for it, or choose another --output")) from error
        if _still_there(path, file):
            os.ftruncate(file.fileno(), 0)
            try:
                os.write(file.fileno(), str(os.getpid()).encode())
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # on a full disk the folder is locked, too; only the error of another run cannot name this process
            return file
        file.close()  # the run that held the lock has removed this file, so a lock on it has no effect


def _holder(file: IO[str]) -> int | None:
    """Return the id of the process that locked the file; None if the file has no id or cannot be read (Windows)."""
    if sys.platform == "win32":
        return None
    file.seek(0)
    written = file.read(32).strip()
    return int(written) if written.isdecimal() else None


def _still_there(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[str]) -> None:
    """Lock an open file. Raise BlockingIOError or PermissionError if another run holds the lock."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
