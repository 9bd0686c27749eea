"""Write to a disk that may be full: raise one error for a full disk, and leave no half-written files.

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
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, DiskError, Problem

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
"""Locks of files; Windows has none of this kind."""

__all__ = [
    "alone_in",
    "append",
    "as_umask_says",
    "disk_problem",
    "gib_in",
    "safe_name",
    "starting_anew",
    "whole_file",
    "whole_folder",
    "write_whole",
    "writing",
]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Error numbers: no space, the user's quota exceeded, a limit on the size of files, a broken disk."""
LITTLE = 1 << 20
"""A disk with fewer free bytes than this counts as full."""
_BINARY: int = vars(os).get("O_BINARY", 0)
"""Flag that stops Windows from changing line ends; 0 on other systems."""
MEND = "free some space, or choose another place; what was there before is kept, and the same command goes on from it"
ANEW = "free some space, or choose another place; nothing half-written is left, and the same command starts anew"

_anew: ContextVar[bool] = ContextVar("anew", default=False)


def safe_name(name: str) -> str:
    """Return a name that can be part of a folder name: `Qwen/Qwen3-8B` -> `Qwen-Qwen3-8B`. Letters and digits of any
    script, `.`, `_` and `+` are kept. The result never contains `--`, which separates the names in a cell's folder.
    """
    return re.sub(r"-+", "-", re.sub(r"[^\w.+-]", "-", name)).strip("-.") or "x"


@contextmanager
def starting_anew() -> Iterator[None]:
    """Within this block, error messages say that the same command starts anew instead of continuing."""
    before = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(before)


def disk_problem(error: BaseException, path: Path | str) -> Problem | None:
    """Return the problem to report if an error means that the disk cannot take more; None for any other error."""
    reason = _reason(error, path)
    mend = ANEW if _anew.get() else MEND
    return Problem(str(path), f"cannot be written: {reason}", mend) if reason is not None else None


def _reason(error: BaseException, path: Path | str) -> str | None:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in FULL else None
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # an error from code in Rust: safetensors, tokenizers
        return os.strerror(int(found[1])) if int(found[1]) in FULL else None
    if isinstance(error, RuntimeError) and ("inline_container" in text or "PytorchStreamWriter" in text):
        there = next(one for one in (Path(path), *Path(path).absolute().parents) if one.exists())
        full = shutil.disk_usage(there).free < LITTLE
        return os.strerror(errno.ENOSPC) if full else "PyTorch could not write the file to its end (is the disk full?)"
    return None


@contextmanager
def writing(target: Path, *remove: Path) -> Iterator[None]:
    """Raise DiskError instead of the various errors that libraries raise on a full disk. If the block fails for any
    reason, the half-written files and folders `remove` are deleted. `target` is the path that the message names.
    """
    try:
        yield
    except BaseException as error:
        problem = disk_problem(error, target)  # before files are deleted, because that frees space
        for path in remove:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if problem is None:
            raise
        raise DiskError(problem) from error


def as_umask_says(*paths: Path) -> None:
    """Give files, and all files in folders, the permissions that the umask allows. Do nothing on Windows. Without this,
    files written by safetensors can be read by their owner only.
    """
    if sys.platform == "win32":
        return
    mask = os.umask(0o077)  # the mask can only be read by setting it
    os.umask(mask)
    for path in paths:
        for file in (one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]:
            file.chmod(0o666 & ~mask)


def gib_in(folder: Path) -> float:
    """Return the size of a folder's files in GiB, rounded to three decimals."""
    return round(sum(path.stat().st_size for path in folder.iterdir()) / 2**30, 3)


@contextmanager
def whole_file(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """Give a temporary path next to `path`, and replace `path` as a whole when the block ends without an error.

    After an error or a kill, `path` keeps its old content. After an error (DiskError on a full disk) the temporary file
    is deleted too. With `flush`, the disk is asked to store the file before it is renamed.
    """
    temporary = path.with_name(f".tmp-{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, temporary):
        yield temporary
        as_umask_says(temporary)
        if flush:
            _flush(temporary)
        temporary.replace(path)


@contextmanager
def whole_folder(folder: Path, *, main: bool = True, flush: bool = False) -> Iterator[Path]:
    """Do the same as `whole_file` for a folder.

    `main` is False on the other processes of a distributed run: they write into the temporary folder of the main
    process and rename nothing. With `flush`, the disk is asked to store every file and the lists of names.
    """
    temporary, old = folder.with_name(f".tmp-{folder.name}"), folder.with_name(f".tmp-old-{folder.name}")
    if not main:
        yield temporary
        return
    _come_back(old, folder)  # if an earlier process was killed between the two renames
    try:
        with writing(folder, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            as_umask_says(temporary)
            if flush:
                for path in (*temporary.rglob("*"), temporary):
                    _flush(path)
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
            if flush:
                _flush(folder.parent)
    finally:
        _come_back(old, folder)
        shutil.rmtree(old, ignore_errors=True)


def _come_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)


def _flush(path: Path) -> None:
    """Ask the disk to store a file, or the names in a folder. Windows opens no folders, and stores names itself."""
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Hold a lock on a folder, which need not exist, so that no other process of posttrain writes it at the same time;
    nothing for None. Raise ConfigError if another one holds it. The lock ends with the process, however it ends.
    """
    if folder is None or fcntl is None:
        yield
        return
    path = folder.resolve().with_name(f".lock-{folder.resolve().name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        cause = "another process is writing it"
        raise ConfigError(Problem(str(folder), cause, "wait for it, or choose another folder")) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def write_whole(path: Path, text: str | bytes, *, flush: bool = False) -> None:
    """Replace a file as a whole; see `whole_file`."""
    with whole_file(path, flush=flush) as temporary:
        temporary.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))


def append(path: Path, text: str) -> None:
    """Append whole lines to a file. If the disk is full, append nothing and raise DiskError."""
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
