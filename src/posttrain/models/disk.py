"""Writing to a disk that may be full: one error for it, and no half-written files.

Libraries report a full disk in many ways: Python's files by OSError, safetensors by SafetensorError, tokenizers by a
bare Exception, and torch by a RuntimeError that names neither the file nor the reason.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from posttrain.errors import DiskError, Problem

__all__ = ["append", "as_umask_says", "disk_problem", "starting_anew", "write_whole", "writing"]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""No space, the user's quota exceeded, a limit on the size of files, a broken disk."""
LITTLE = 1 << 20
"""A disk with fewer free bytes than these is taken for full."""
_BINARY: int = vars(os).get("O_BINARY", 0)
"""Without it Windows changes line ends."""
MEND = "free some space, or choose another place; what was there before is kept, and the same command goes on from it"
ANEW = "free some space, or choose another place; nothing half-written is left, and the same command starts anew"

_anew: ContextVar[bool] = ContextVar("anew", default=False)


@contextmanager
def starting_anew() -> Iterator[None]:
    """Within this, errors do not promise that the same command goes on from where it stopped: it starts anew."""
    before = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(before)


def disk_problem(error: BaseException, path: Path | str) -> Problem | None:
    """The problem to report if an error means that the disk takes no more; None for any other error."""
    reason = _reason(error, path)
    mend = ANEW if _anew.get() else MEND
    return Problem(str(path), f"cannot be written: {reason}", mend) if reason is not None else None


def _reason(error: BaseException, path: Path | str) -> str | None:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in FULL else None
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # of code in Rust: safetensors, tokenizers
        return os.strerror(int(found[1])) if int(found[1]) in FULL else None
    if isinstance(error, RuntimeError) and ("inline_container" in text or "PytorchStreamWriter" in text):
        there = next(one for one in (Path(path), *Path(path).absolute().parents) if one.exists())
        full = shutil.disk_usage(there).free < LITTLE
        return os.strerror(errno.ENOSPC) if full else "PyTorch could not write the file to its end (is the disk full?)"
    return None


@contextmanager
def writing(target: Path, *remove: Path) -> Iterator[None]:
    """DiskError instead of whatever a library raises on a full disk. When the block fails for any reason, the
    half-written files and folders `remove` are deleted. target: what is written, for the message.
    """
    try:
        yield
    except BaseException as error:
        problem = disk_problem(error, target)  # before files are deleted, which frees space
        for path in remove:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if problem is None:
            raise
        raise DiskError(problem) from error


def as_umask_says(*paths: Path) -> None:
    """Give files, and all files in folders, the permissions that the umask says: safetensors makes its files readable
    by their owner only. Does nothing on Windows, which has other permissions.
    """
    if sys.platform == "win32":
        return
    mask = os.umask(0o077)  # it cannot be read without being set
    os.umask(mask)
    for path in paths:
        for file in (one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]:
            file.chmod(0o666 & ~mask)


def write_whole(path: Path, text: str, *, flush: bool = False) -> None:
    """Replace a text file atomically: after a kill or on a full disk, there is the old file or the new one. flush: sync
    it to the disk before it gets its name."""
    temporary = path.with_name(f".tmp-{path.name}.{os.getpid()}")
    with writing(path, temporary):
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)


def append(path: Path, text: str) -> None:
    """Append whole lines to a file: all of them, or none when the disk is full."""
    with writing(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _BINARY, 0o666)
        try:
            before = os.fstat(handle)
            left = memoryview(text.encode("utf-8"))
            try:
                while left:
                    left = left[os.write(handle, left) :]
            except OSError:
                if stat.S_ISREG(before.st_mode):  # a pipe or a device cannot be shortened
                    os.ftruncate(handle, before.st_size)
                raise
        finally:
            os.close(handle)
